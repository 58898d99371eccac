//! `/metrics` and `/health` over HTTP, for monitoring. Read only.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::guests::Guests;
use super::listener::ACCEPT_PAUSE;
use crate::engine::Engine;
use crate::telemetry::Failure;

/// Connections at once.
const CONNECTIONS: usize = 32;
/// How long a request may take to come, and its answer to be taken, together.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest head of a request, in bytes.
const LONGEST_HEAD: usize = 16 << 10;

/// Binds the address.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until dropped.
pub async fn serve(listener: std::net::TcpListener, engine: Arc<Engine>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut guests = Guests::new(CONNECTIONS, engine.clone());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => guests.take(converse(stream, engine.clone())).await,
            Err(error) => {
                engine.failed(Failure::Accept, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, engine: Arc<Engine>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&engine, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    // One request: so the time is for a whole answer, however slowly it is read.
    let answered = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // What a monitoring client does wrong is its own trouble.
    let _ = timeout(PATIENCE, answered).await;
}

fn respond(engine: &Engine, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", engine.metrics())
        }
        (&Method::GET | &Method::HEAD, "/health") => (StatusCode::OK, plain, "serving\n".into()),
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, plain, "not found: see /metrics or /health\n".into())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, plain, "only GET and HEAD are allowed\n".into()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
