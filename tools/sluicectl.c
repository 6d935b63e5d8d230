/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sluicectl: says one verb over a running sluice's control socket and shows
 * the answer. The daemon writes the tables; this program finds the socket,
 * checks the words, and turns what goes wrong into a sentence and an exit
 * code: 0 done, 1 refused or failed, 2 wrong usage.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"

#define DEFAULT_SOCKET "/run/sluice/admin.sock"
#define ANSWER_SECONDS 60

enum { EXIT_DONE = 0, EXIT_REFUSED = 1, EXIT_USAGE = 2 };

static const struct verb {
	const char *name, *arguments, *help;
	int args;
} verbs[] = {
	{ "status", "", "the process, its listeners and backends", 0 },
	{ "backends", "", "the backends: state, weight, load, last error", 0 },
	{ "stats", "", "every counter", 0 },
	{ "drain", "NAME", "no new sessions for a backend; running ones go on", 1 },
	{ "disable", "NAME", "no new requests for it at all", 1 },
	{ "enable", "NAME", "use it again", 1 },
	{ "weight", "NAME N", "override its weight (1 to 256), or default", 2 },
	{ "reload", "", "read the configuration again, as SIGHUP does", 0 },
	{ "upgrade", "", "start the binary on disk and hand over to it", 0 },
	{ "help", "", "the verbs this daemon knows", 0 },
};

static const char *const examples[] = {
	"sluicectl status",
	"sluicectl drain one/10.0.0.7:443",
	"sluicectl weight 10.0.0.7:443 5",
	"sluicectl -s /tmp/sluice.sock backends --json",
};

static void usage(FILE *f)
{
	fprintf(f, "usage: sluicectl [-s SOCKET] VERB [ARGUMENTS] [--json]\n\nverbs:\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		char z[32];

		snprintf(z, sizeof(z), "%s %s", verbs[i].name, verbs[i].arguments);
		fprintf(f, "  %-16s %s\n", z, verbs[i].help);
	}
	fprintf(f, "\nNAME is UPSTREAM/ADDRESS, or ADDRESS alone where only one upstream has it.\n\n"
		   "options:\n"
		   "  -s, --socket PATH  control socket; default: $SLUICE_SOCKET, else " DEFAULT_SOCKET "\n"
		   "  -j, --json         the answer as JSON\n"
		   "  -h, --help         this text\n"
		   "  -V, --version      the version\n\nexamples:\n");
	for (size_t i = 0; i < ARRAY_SIZE(examples); i++)
		fprintf(f, "  %s\n", examples[i]);
}

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}

static int _printf_(1, 2) fail_usage(const char *fmt, ...)
{
	va_list ap;

	fputs("sluicectl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs("\nTry sluicectl --help.\n", stderr);
	return EXIT_USAGE;
}

static void explain_connect(const char *path, int err)
{
	fprintf(stderr, "sluicectl: %s: %s\n", path, strerror(err));
	switch (err) {
	case ENOENT:
		fprintf(stderr,
			"Is sluice running, and does its configuration name this socket?\n"
			"    admin: {socket: %s}\n"
			"Another socket: -s PATH, or SLUICE_SOCKET in the environment.\n",
			path);
		break;
	case ECONNREFUSED:
		fprintf(stderr, "The file is there but nobody listens: the sluice that made it is gone.\n");
		break;
	case EACCES:
		fprintf(stderr, "Only the user that started sluice may use it; try as root.\n");
		break;
	case EAGAIN:
		fprintf(stderr, "sluice runs but does not take the connection: its main thread is busy.\n");
		break;
	}
}

/* The connected socket, or -1 after saying why. */
static int dial(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = ANSWER_SECONDS };
	int fd;

	if (strlen(path) >= sizeof(a.sun_path)) {
		fprintf(stderr, "sluicectl: %s: longer than a socket path can be\n", path);
		return -1;
	}
	memcpy(a.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		perror("sluicectl: socket");
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		explain_connect(path, errno);
		close(fd);
		return -1;
	}
	return fd;
}

/* Sends line and reads until the other side closes. 0 or -errno. */
static int ask(int fd, struct str line, struct buf *answer)
{
	while (line.n) {
		ssize_t n = send(fd, line.p, line.n, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			line = (struct str){ line.p + n, line.n - (size_t)n };
	}
	for (;;) {
		ssize_t n;

		if (buf_reserve(answer, 4096) < 0)
			return -ENOMEM;
		n = recv(fd, buf_tail(answer), buf_room(answer), 0);
		if (n == 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			buf_commit(answer, (size_t)n);
	}
}

/* Shows the answer: its first line says how it went, the rest is for the reader. */
static int show(struct str a)
{
	const char *nl = a.n ? memchr(a.p, '\n', a.n) : NULL;
	struct str first = { a.p, nl ? (size_t)(nl - a.p) : 0 };
	bool ok = nl && str_eqz(first, "ok");
	FILE *f = ok ? stdout : stderr;

	if (!nl) {
		fprintf(stderr, "sluicectl: sluice closed the connection without an answer\n");
		return EXIT_REFUSED;
	}
	if (!ok)
		fprintf(stderr, "sluicectl: " STR_FMT "\n", (int)(first.n > 7 ? first.n - 7 : first.n),
			first.n > 7 ? first.p + 7 : first.p);
	fwrite(nl + 1, 1, a.n - first.n - 1, f);
	if (fflush(f) != 0) {
		perror("sluicectl: writing the answer");
		return EXIT_REFUSED;
	}
	return ok ? EXIT_DONE : EXIT_REFUSED;
}

static int run(const char *path, struct str line)
{
	struct buf answer = BUF_INIT;
	int fd = dial(path), r;

	if (fd < 0)
		return EXIT_REFUSED;
	r = ask(fd, line, &answer);
	close(fd);
	/* An answer that came whole is shown even when the end was not in good order. */
	if (r == 0 || (r == -ECONNRESET && answer.len)) {
		r = show(buf_str(&answer));
	} else {
		fprintf(stderr, "sluicectl: %s: %s\n", path,
			r == -EAGAIN ? "no answer within a minute" : strerror(-r));
		r = EXIT_REFUSED;
	}
	buf_deinit(&answer);
	return r;
}

/* One line of words; a word that the protocol can not carry is refused. */
static int line_write(struct buf *line, char **words, int n, bool json)
{
	for (int i = 0; i < n; i++) {
		for (const char *z = words[i]; *z; z++)
			if ((unsigned char)*z <= ' ')
				return -EINVAL;
		if (!*words[i])
			return -EINVAL;
		if (buf_printf(line, "%s%s", i ? " " : "", words[i]) < 0)
			return -ENOMEM;
	}
	return buf_printf(line, "%s\n", json ? " --json" : "");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "socket", required_argument, NULL, 's' }, { "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },	    { "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	const char *path = getenv("SLUICE_SOCKET");
	struct buf line = BUF_INIT;
	const struct verb *v;
	bool json = false;
	int o, r;

	if (!path || !*path)
		path = DEFAULT_SOCKET;
	while ((o = getopt_long(argc, argv, "s:jhV", options, NULL)) != -1) {
		switch (o) {
		case 's':
			path = optarg;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			usage(stdout);
			return EXIT_DONE;
		case 'V':
			printf("sluicectl %s\n", SLUICE_VERSION);
			return EXIT_DONE;
		default:
			fputs("Try sluicectl --help.\n", stderr);
			return EXIT_USAGE;
		}
	}
	if (optind == argc) {
		usage(stderr);
		return EXIT_USAGE;
	}
	v = verb_find(argv[optind]);
	if (!v)
		return fail_usage("%s is no verb", argv[optind]);
	if (argc - optind - 1 != v->args)
		return fail_usage("usage: sluicectl %s%s%s", v->name, *v->arguments ? " " : "", v->arguments);
	r = line_write(&line, argv + optind, argc - optind, json);
	if (r == -EINVAL)
		return fail_usage("an argument is empty or holds blanks");
	r = r < 0 ? (fputs("sluicectl: out of memory\n", stderr), EXIT_REFUSED) : run(path, buf_str(&line));
	buf_deinit(&line);
	return r;
}
