/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An agent: says hello to whoever a task names, until Ctrl-C.
 *
 *     cc agent.c $(pkg-config --cflags --libs omniclient) -o agent
 *     ./agent &
 *     omnictl task publish greet '{"name":"world"}'
 */
#include <omniclient.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static omni_client *client;

/* NOLINTNEXTLINE(bugprone-signal-handler): omni_stop() is made for this. */
static void stop(int signal_number) { omni_stop(client); }

static void greet(omni_agent *agent, omni_task *task, void *user) {
        printf("task %s, attempt %d: %s\n", omni_task_id(task), omni_task_attempt(task), omni_task_content(task, NULL));
        fflush(stdout);
        if (!strstr(omni_task_content(task, NULL), "\"name\""))
                omni_task_fail(task, "the content names nobody: expected {\"name\": …}", "BadContent", -1, OMNI_FAIL_NO_RETRY);
        else
                omni_task_ack(task, "{\"greeting\":\"hello\"}", OMNI_STR);
}

int main(void) {
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = "greet";
        options.name = "greeter";
        options.description = "says hello";

        client = omni_default();
        if (!client) {
                perror("omni_default");
                return 1;
        }
        signal(SIGINT, stop);
        signal(SIGTERM, stop);
        if (omni_agent_register(client, &options, greet, NULL, NULL) < 0 || omni_run(client) < 0) {
                fprintf(stderr, "%s\n", omni_strerror(client));
                return 1;
        }
        return 0;
}
