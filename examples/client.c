/* Saves a directory as a checkpoint of the task this process was started by, and says what came of it.
 *
 *     cc -o client client.c && ./client /absolute/path/of/a/directory
 *
 * The protocol is described in docs/protocol.md. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char answer[(1 << 20) + 1]; /* The longest frame. */

static int ask(int fd, const char *json) { /* One question, and the next answer with a "seq"; -1 if it is an error. */
    uint32_t size = htonl(strlen(json));
    strcpy(answer, "the agent has ended the connection: ask again");
    if (send(fd, &size, 4, MSG_NOSIGNAL) != 4 || send(fd, json, strlen(json), MSG_NOSIGNAL) < 0) return -1;
    do {
        if (recv(fd, &size, 4, MSG_WAITALL) != 4 || (size = ntohl(size)) >= sizeof answer) return -1;
        if (recv(fd, answer, size, MSG_WAITALL) != (ssize_t)size) return -1;
        answer[size] = 0;
    } while (strncmp(answer, "{\"seq\":", 7)); /* What the agent says by itself is not for us. */
    return strncmp(answer + 8, ",\"error\":", 9) ? 0 : -1;
}

int main(int count, char **arguments) {
    struct sockaddr_un address = {AF_UNIX, "agent.sock"};
    char frame[8192];
    const char *spool = getenv("ASYNC_CKPT_SPOOL");
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (count != 2 || strpbrk(arguments[1], "\"\\")) return fprintf(stderr, "usage: client DIRECTORY\n"), 2;
    if (!spool || chdir(spool)) return fprintf(stderr, "there is no task, or it has ended\n"), 1;
    for (int tries = 0; connect(fd, (struct sockaddr *)&address, sizeof address); sleep(1)) /* It may be restarted. */
        if (++tries == 10) return perror("no agent answers"), 1;
    snprintf(frame, sizeof frame, "{\"op\":\"save\",\"seq\":2,\"path\":\"%s\",\"name\":\"from-c\"}", arguments[1]);
    if (ask(fd, "{\"op\":\"hello\",\"v\":1,\"seq\":1}") || ask(fd, frame)) return fprintf(stderr, "%s\n", answer), 1;
    return puts(answer), 0;
}
