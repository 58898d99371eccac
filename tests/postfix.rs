mod support;
use support::postfix::Postfix;
use support::smtp::Client;

#[test]
fn a_private_postfix_delivers() {
    let t = std::time::Instant::now();
    let postfix = Postfix::plain().with_user("alice", "secret").start();
    eprintln!("up {:?}", t.elapsed());
    let mut client = Client::connect(postfix.smtp, "127.1.2.3");
    client.ehlo().expect(250);
    client.auth_plain("alice", "secret").expect(235);
    client.deliver("sender@example.net", &["a", "b"]);
    client.quit();
    let mut client = Client::proxied(postfix.proxied, "2001:db8::7");
    client.helo().expect(250);
    client.deliver("sender@example.net", &["c"]);
    postfix.delivered(&["a", "b", "c"]);
    eprintln!("deli {:?}", t.elapsed());
    let t = std::time::Instant::now();
    drop(postfix);
    eprintln!("drop {:?}", t.elapsed());
}
