/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three agents on one connection, each handing on to the next: a text is split into words, the words are measured, the measures are
 * printed.
 *
 *     cc pipeline.c $(pkg-config --cflags --libs omniclient) -o pipeline
 *     ./pipeline "a text of some words"
 *
 * Each stage acknowledges its task together with the tasks for the next (omni_task_ack_publish): they are on the bus if and only if the
 * task is done, so that a stage that dies in the middle loses nothing and, where the bus can, doubles nothing.
 */
#include <omniclient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 100, WORD_MAX = 64 };

static int words_left;

/* "a text" → one task a word. The contents stay in this function's memory until the call returns: that is long enough. */
static void split(omni_agent *agent, omni_task *task, void *user) {
        static char words[WORDS_MAX][WORD_MAX];
        omni_publish_options outputs[WORDS_MAX];
        size_t len, n = 0;
        const char *text = omni_task_content(task, &len);
        char *copy = strndup(text + 1, len - 2); /* without its quotes */
        if (!copy) {
                omni_task_fail(task, "out of memory", NULL, -1, 0);
                return;
        }
        for (char *word = strtok(copy, " "); word && n < WORDS_MAX; word = strtok(NULL, " ")) {
                snprintf(words[n], WORD_MAX, "\"%.60s\"", word);
                outputs[n] = (omni_publish_options) OMNI_PUBLISH_OPTIONS_INIT;
                outputs[n].topic = "pipeline.word";
                outputs[n].content = words[n];
                n++;
        }
        free(copy);
        words_left = (int) n;
        omni_task_ack_publish(task, NULL, 0, outputs, n, NULL, NULL);
}

static void measure(omni_agent *agent, omni_task *task, void *user) {
        char content[WORD_MAX + 40];
        size_t len;
        const char *word = omni_task_content(task, &len);
        omni_publish_options output = OMNI_PUBLISH_OPTIONS_INIT;
        snprintf(content, sizeof(content), "{\"word\":%.*s,\"bytes\":%zu}", (int) len, word, len - 2);
        output.topic = "pipeline.measure";
        output.content = content;
        omni_task_ack_publish(task, content, OMNI_STR, &output, 1, NULL, NULL);
}

static void print(omni_agent *agent, omni_task *task, void *user) {
        printf("%s\n", omni_task_content(task, NULL));
        omni_task_ack(task, NULL, 0);
        if (--words_left == 0)
                omni_stop(omni_agent_client(agent));
}

static int serve(omni_client *client, const char *topic, const char *name, omni_handler_fn *handler) {
        omni_agent_options options = OMNI_AGENT_OPTIONS_INIT;
        options.topic = topic;
        options.name = name;
        options.prefetch = WORDS_MAX;
        return omni_agent_register(client, &options, handler, NULL, NULL);
}

int main(int argc, char **argv) {
        omni_client *client = omni_default();
        const char *text = argc > 1 ? argv[1] : "one after the other";
        char content[4096];
        if (strpbrk(text, "\"\\") || strlen(text) > sizeof(content) - 3) {
                fprintf(stderr, "usage: pipeline \"WORDS\" (short, without quotes and backslashes)\n");
                return 2;
        }
        snprintf(content, sizeof(content), "\"%s\"", text);
        if (!client || serve(client, "pipeline.text", "splitter", split) < 0 || serve(client, "pipeline.word", "measurer", measure) < 0 ||
                serve(client, "pipeline.measure", "printer", print) < 0 || omni_publish_json(client, "pipeline.text", content, NULL) < 0 ||
                omni_run(client) < 0) {
                fprintf(stderr, "%s\n", omni_strerror(client));
                return 1;
        }
        return 0;
}
