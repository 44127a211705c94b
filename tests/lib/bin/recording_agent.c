/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An agent for the tests: `recording_agent TOPIC NAME FILE` acknowledges every task with its own content as the result, and writes a line
 * "id attempt" into FILE before it does. Serves until SIGTERM, through any number of restarts of the daemon.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../../client/c/omniclient.h"

static omni_client *client;
static int record_fd;

static void on_signal(int number) {
        (void) number;
        omni_stop(client);
}

static void handle(omni_agent *agent, omni_task *task, void *user) {
        (void) agent, (void) user;
        size_t len;
        const char *content = omni_task_content(task, &len);
        char line[256];
        int n = snprintf(line, sizeof(line), "%s %d\n", omni_task_id(task), omni_task_attempt(task));
        if (write(record_fd, line, (size_t) n) != n)
                abort();
        omni_task_ack(task, content, len);
}

int main(int argc, char **argv) {
        if (argc != 4) {
                fprintf(stderr, "usage: recording_agent TOPIC NAME FILE\n");
                return 2;
        }
        record_fd = open(argv[3], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        client = omni_default();
        if (record_fd < 0 || !client) {
                perror("recording_agent");
                return 1;
        }
        struct sigaction action = { .sa_handler = on_signal };
        sigaction(SIGTERM, &action, NULL);
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = argv[1];
        options.name = argv[2];
        if (omni_agent_register(client, &options, handle, NULL, NULL) < 0 || omni_run(client) < 0) {
                fprintf(stderr, "recording_agent: %s\n", omni_strerror(client));
                return 1;
        }
        omni_free(client);
        return 0;
}
