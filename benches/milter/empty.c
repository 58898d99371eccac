/* The least a milter can cost: one thread over epoll that reads frames, says Continue, and knows
 * nothing. benches/milter.rs compiles and runs it. The steps and macros asked for are ours. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { ROOM = 4096, EVENTS = 256 };

struct connection {
	int fd;
	uint32_t held;
	unsigned char bytes[];
};

static const char macros[] =
	"\0\0\0\0j {client_addr} {client_ptr} {client_resolve} {client_connections} {daemon_name} "
	"{daemon_port}\0"
	"\0\0\0\2{auth_authen} {auth_type} {mail_addr} {tls_version}\0"
	"\0\0\0\3{rcpt_mailer} {rcpt_host} {rcpt_addr}\0"
	"\0\0\0\5i {msg_size}\0"
	"\0\0\0\6i";

static uint32_t number(const unsigned char *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* What these frames are answered; how many bytes were frames, or -1 at the end. */
static long hear(const unsigned char *bytes, size_t length, unsigned char *said, size_t *answer)
{
	size_t at = 0;
	while (length - at >= 5) {
		size_t frame = number(bytes + at) + 4;
		if (length - at < frame)
			break;
		switch (bytes[at + 4]) {
		case 'O': {
			static const unsigned char steps[13] = {'O', 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0x0b, 0x70};
			uint32_t all = sizeof steps + sizeof macros;
			unsigned char *to = said + *answer;
			to[0] = to[1] = 0, to[2] = all >> 8, to[3] = all & 0xff;
			memcpy(to + 4, steps, sizeof steps);
			memcpy(to + 4 + sizeof steps, macros, sizeof macros);
			*answer += 4 + all;
			break;
		}
		case 'D': case 'A':
			break;
		case 'Q':
			return -1;
		default:
			memcpy(said + *answer, "\0\0\0\1c", 5);
			*answer += 5;
		}
		at += frame;
	}
	return (long)at;
}

static int serve(struct connection *it)
{
	static unsigned char said[2 * ROOM];
	size_t answer = 0;
	ssize_t came = read(it->fd, it->bytes + it->held, ROOM - it->held);
	if (came <= 0)
		return -1;
	size_t length = it->held + (size_t)came;
	long used = hear(it->bytes, length, said, &answer);
	if (used < 0)
		return -1;
	it->held = (uint32_t)(length - (size_t)used);
	memmove(it->bytes, it->bytes + used, it->held);
	return answer == 0 || write(it->fd, said, answer) == (ssize_t)answer ? 0 : -1;
}

int main(int count, char **words)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	struct epoll_event events[EVENTS], one = {.events = EPOLLIN};
	if (count != 2 || strlen(words[1]) >= sizeof at.sun_path)
		return 2;
	strcpy(at.sun_path, words[1]);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int poll = epoll_create1(EPOLL_CLOEXEC);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096))
		return perror("empty"), 1;
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &one);
	for (;;) {
		int ready = epoll_wait(poll, events, EVENTS, -1);
		for (int i = 0; i < ready; i++) {
			struct connection *it = events[i].data.ptr;
			if (it) {
				if (serve(it)) {
					close(it->fd);
					free(it);
				}
				continue;
			}
			int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (fd < 0)
				continue;
			it = malloc(sizeof *it + ROOM);
			it->fd = fd, it->held = 0, one.data.ptr = it;
			epoll_ctl(poll, EPOLL_CTL_ADD, fd, &one);
		}
	}
}
