/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client in a program that has a loop of its own, here poll(2): every line of standard input becomes a task, and an agent in the same
 * program handles them. Nothing in it blocks but poll().
 *
 *     cc eventloop.c $(pkg-config --cflags --libs omniclient) -o eventloop
 *     printf '1\n2\n3\n' | ./eventloop
 */
#include <omniclient.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int open_lines, failed;

static void handled(omni_client *client, int status, const char *error, void *user) {
        if (status < 0)
                fprintf(stderr, "ack: %s\n", error); /* the task is delivered again */
        else
                open_lines--;
}

static void handle(omni_agent *agent, omni_task *task, void *user) {
        printf("handled %s\n", omni_task_content(task, NULL));
        omni_task_ack_publish(task, NULL, 0, NULL, 0, handled, NULL);
}

static void published(omni_client *client, int status, const char *id, const char *error, void *user) {
        if (status < 0) {
                fprintf(stderr, "publish: %s\n", error);
                open_lines--;
                failed = 1;
        }
}

static int publish_line(omni_client *client, char *line) {
        omni_publish_options task = OMNI_PUBLISH_OPTIONS_INIT;
        line[strcspn(line, "\n")] = '\0';
        task.topic = "eventloop.line";
        task.content = line;
        open_lines++;
        int r;
        while ((r = omni_publish_async(client, &task, published, NULL)) == -ENOBUFS)
                omni_run_once(client, 1000); /* the queue is full: let it drain */
        if (r < 0) {
                fprintf(stderr, "%s: %s\n", line, omni_strerror(client));
                open_lines--;
                failed = 1;
        }
        return r;
}

int main(void) {
        omni_client *client = omni_default();
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "eventloop.line";
        options.name = "handler";
        if (!client || omni_agent_register(client, &options, handle, NULL, NULL) < 0) {
                fprintf(stderr, "%s\n", omni_strerror(client));
                return 1;
        }
        char buffer[65536];
        size_t used = 0;
        int input = STDIN_FILENO; /* -1 after its end: poll() ignores it */
        while (input >= 0 || open_lines > 0) {
                struct pollfd fds[2] = { { .fd = input, .events = POLLIN }, { .fd = omni_fd(client), .events = omni_events(client) } };
                int64_t timeout = omni_timeout_ms(client); /* asked anew each time */
                if (poll(fds, 2, timeout < 0 ? -1 : timeout > 60000 ? 60000 : (int) timeout) < 0 && errno != EINTR)
                        return 1;
                if (fds[0].revents) {
                        ssize_t n = read(input, buffer + used, sizeof(buffer) - 1 - used);
                        if (n <= 0) {
                                input = -1;
                                n = 0;
                        }
                        used += (size_t) n;
                        buffer[used] = '\0';
                        char *line = buffer, *end;
                        while ((end = strchr(line, '\n'))) {
                                *end = '\0';
                                publish_line(client, line);
                                line = end + 1;
                        }
                        used -= (size_t) (line - buffer);
                        memmove(buffer, line, used);
                        if (used == sizeof(buffer) - 1)
                                return 1; /* a line longer than any that this example takes */
                }
                if (omni_process(client) < 0) {
                        fprintf(stderr, "%s\n", omni_strerror(client));
                        return 1;
                }
        }
        return failed;
}
