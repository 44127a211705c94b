/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of commands: names, arguments, options, help and examples. What is not here does not exist, and what is here is parsed, helped,
 * completed and stands in the man page. Names of the Python OmniDaemon stand beside ours where they differ (`also`).
 */
#include "ctl.h"

static const char *const formats[] = { "table", "json", "compact", "tree", "csv", NULL };
static const char *const shells[] = { "bash", "zsh", "fish", NULL };
static const char *const states[] = { "completed", "failed", NULL };
static const char *const clearable[] = { "agents", "results", "metrics", "config", "all", NULL };
static const char *const starts[] = { "first", "new", NULL };

const struct option ctl_global_options[] = {
        { .name = "socket",
                .value = "PATH",
                .type = OPT_TEXT,
                .offer = OFFER_FILES,
                .help = "the daemon's socket (default: $OMNIDAEMON_SOCKET, the user's daemon, the system's)" },
        { .name = "format",
                .letter = 'f',
                .value = "FORMAT",
                .type = OPT_CHOICE,
                .choices = formats,
                .help = "table, json, compact (a line a record, parted by tabs), tree, or csv (storage query); default: table on a "
                        "terminal, json in "
                        "a pipe" },
        { .name = "watch",
                .letter = 'w',
                .value = "SECONDS",
                .type = OPT_TIME,
                .flags = OPT_MAYBE,
                .min = 100,
                .help = "show it again and again, every 2 seconds or as given; for commands that read" },
        { .name = "timeout", .value = "TIME", .type = OPT_TIME, .min = 1, .help = "how long one call may take (default 30s)" },
        { .name = "yes", .letter = 'y', .type = OPT_FLAG, .help = "do what destroys without asking" },
        { .name = "quiet", .letter = 'q', .type = OPT_FLAG, .help = "only what was asked for and errors: no remarks, no progress" },
        { .name = "no-color", .also = "no-colour", .type = OPT_FLAG, .help = "no colour (as with NO_COLOR set)" },
        { .name = "help", .letter = 'h', .type = OPT_FLAG, .help = "help for this command" },
        { .name = "version", .letter = 'V', .type = OPT_FLAG, .help = "print the version" },
        { .name = NULL },
};

/* What many commands take. */
#define TOPIC(...) \
        { .name = "topic", .also = "stream", .letter = 't', .value = "TOPIC", .type = OPT_TEXT, .offer = OFFER_TOPICS, __VA_ARGS__ }
#define NAME(...) \
        { .name = "name", .also = "agent", .value = "NAME", .type = OPT_TEXT, .offer = OFFER_AGENTS, __VA_ARGS__ }
#define AGENT(...) \
        { .name = "agent", .also = "name", .letter = 'a', .value = "AGENT", .type = OPT_TEXT, .offer = OFFER_AGENTS, __VA_ARGS__ }
#define LIMIT(text) \
        { .name = "limit", .letter = 'n', .value = "N", .type = OPT_INT, .min = 1, .help = "how many at most (default " text ")" }
#define PAGES(text)                                                                       \
        LIMIT(text), { .name = "all", .type = OPT_FLAG, .help = "all that there are" }, { \
                .name = "cursor", .value = "CURSOR", .type = OPT_TEXT,                    \
                .help = "go on where an earlier answer in JSON ended (its \"cursor\")"    \
        }
#define DEAD_LETTERS \
        { .name = "dead-letters", .type = OPT_FLAG, .help = "delete its dead letters as well" }
#define END \
        { .name = NULL }
#define MUST .flags = OPT_POSITION | OPT_REQUIRED
#define MAY .flags = OPT_POSITION

static const struct option none[] = { END };
static const struct option one_agent[] = { TOPIC(MUST, .help = "the topic it serves"), NAME(MUST, .help = "its name"), END };
static const struct option delete_agent[] = { TOPIC(MUST, .help = "the topic it serves"), NAME(MUST, .help = "its name"), DEAD_LETTERS,
        END };
static const struct option seek_agent[] = { TOPIC(MUST, .help = "the topic it serves"), NAME(MUST, .help = "its name"),
        { .name = "to",
                .value = "WHERE",
                .type = OPT_TEXT,
                .flags = OPT_REQUIRED,
                .choices = starts,
                .help = "first: all that the bus still has; new: only what is published from now on; or a Unix time" },
        END };
static const struct option delete_topic[] = { TOPIC(MUST, .help = "the topic"), DEAD_LETTERS, END };
static const struct option may_topic[] = { TOPIC(MAY, .help = "only this topic"), END };

static const struct option run_options[] = {
        TOPIC(.flags = OPT_REQUIRED, .help = "the topic to serve; a pattern (a.*, a.#) where the bus has them"),
        NAME(.flags = OPT_REQUIRED, .help = "the agent's name: workers of one name share the tasks"),
        { .name = "workers",
                .letter = 'k',
                .value = "N",
                .type = OPT_INT,
                .min = 1,
                .max = 1000,
                .help = "how many of the program run at once (default 1)" },
        { .name = "timeout",
                .value = "TIME",
                .type = OPT_TIME,
                .min = 1,
                .help = "a program that runs longer is ended (SIGTERM, then SIGKILL) and the task fails; default: none" },
        { .name = "kill-after", .value = "TIME", .type = OPT_TIME, .min = 0, .help = "how long after SIGTERM until SIGKILL (default 5s)" },
        { .name = "max-output",
                .value = "SIZE",
                .type = OPT_SIZE,
                .min = 1,
                .max = 16000000,
                .help = "standard output above this fails the task (default 1M, at most what a frame holds)" },
        { .name = "raw", .type = OPT_FLAG, .help = "give a content that is a JSON string as its text, without quotes and escapes" },
        { .name = "text", .type = OPT_FLAG, .help = "the result is always a JSON string, even where the output reads as JSON" },
        { .name = "once",
                .value = "N",
                .type = OPT_INT,
                .flags = OPT_MAYBE,
                .min = 1,
                .help = "--once=N: end after N tasks (1 without a number)" },
        { .name = "show-stderr", .type = OPT_FLAG, .help = "show what the program writes on standard error while it runs" },
        { .name = "prefetch",
                .value = "N",
                .type = OPT_INT,
                .min = 1,
                .max = 1000,
                .help = "tasks held at once (default: as many as workers)" },
        { .name = "retry-limit",
                .also = "dlq-retry-limit",
                .value = "N",
                .type = OPT_INT,
                .min = 0,
                .max = 1000,
                .help = "retries before the dead letters (default 3)" },
        { .name = "retry-backoff",
                .value = "TIME",
                .type = OPT_TIME,
                .min = 0,
                .max = 3600000,
                .help = "wait before the first retry; doubles with each (default 1s)" },
        { .name = "reclaim-idle",
                .value = "TIME",
                .type = OPT_TIME,
                .min = 1,
                .help = "a lease that is not kept alive for so long is lost; it is kept alive while the program runs" },
        { .name = "start",
                .value = "WHERE",
                .type = OPT_TEXT,
                .choices = starts,
                .help = "where a new group starts: first, new, or a Unix time (default: the daemon's rule)" },
        { .name = "tool",
                .value = "TOOL",
                .type = OPT_TEXT,
                .flags = OPT_REPEAT,
                .help = "a tool that the agent has, for listings; may stand several times" },
        { .name = "description", .value = "TEXT", .type = OPT_TEXT, .help = "what the agent does, for listings" },
        { .name = "program",
                .value = "PROGRAM [ARGS…]",
                .type = OPT_TEXT,
                .flags = OPT_POSITION | OPT_REQUIRED | OPT_REPEAT,
                .offer = OFFER_PROGRAMS,
                .help = "what to run for each task" },
        END,
};

static const struct option publish_options[] = {
        TOPIC(.flags = OPT_REQUIRED, .help = "where to"),
        { .name = "content",
                .value = "CONTENT",
                .type = OPT_TEXT,
                .flags = OPT_POSITION | OPT_REPEAT,
                .offer = OFFER_FILES,
                .help = "the task's content; without it, or with -, standard input is read" },
        { .name = "file", .value = "FILE", .type = OPT_TEXT, .offer = OFFER_FILES, .help = "take the content from a file" },
        { .name = "json", .type = OPT_FLAG, .help = "the content is JSON (what it is taken for anyhow)" },
        { .name = "text", .type = OPT_FLAG, .help = "the content is plain text: it becomes a JSON string" },
        { .name = "lines", .type = OPT_FLAG, .help = "each line of the input is a task" },
        { .name = "each-file", .type = OPT_FLAG, .help = "the arguments are files: a task each, {\"file\": PATH, \"text\": …}" },
        { .name = "wait",
                .value = "TIME",
                .type = OPT_TIME,
                .flags = OPT_MAYBE,
                .min = 1,
                .max = 86400000,
                .help = "wait for the result and print it (30s, or as given)" },
        { .name = "reply-to", .value = "TOPIC", .type = OPT_TEXT, .offer = OFFER_TOPICS, .help = "publish the result there as a new task" },
        { .name = "webhook", .value = "URL", .type = OPT_TEXT, .help = "post the result there" },
        { .name = "key", .value = "KEY", .type = OPT_TEXT, .help = "tasks of one key are handled in order, one at a time" },
        { .name = "priority", .value = "0-9", .type = OPT_INT, .min = 0, .max = 9, .help = "9 is served first (default 0)" },
        { .name = "ttl", .value = "TIME", .type = OPT_TIME, .min = 1, .help = "not delivered later than this" },
        { .name = "delay", .value = "TIME", .type = OPT_TIME, .min = 0, .help = "not delivered earlier than this" },
        { .name = "idempotency-key",
                .value = "KEY",
                .type = OPT_TEXT,
                .help = "a second publish with the same key publishes nothing and gives the first one's id" },
        { .name = "header",
                .value = "NAME=VALUE",
                .type = OPT_TEXT,
                .flags = OPT_REPEAT,
                .help = "a header that is carried along; may stand several times" },
        { .name = "id", .value = "ID", .type = OPT_TEXT, .help = "the task's id (default: made)" },
        { .name = "correlation-id", .value = "ID", .type = OPT_TEXT, .help = "carried into replies and results" },
        { .name = "causation-id", .value = "ID", .type = OPT_TEXT, .help = "the task that caused this one" },
        { .name = "source", .value = "NAME", .type = OPT_TEXT, .help = "who publishes" },
        { .name = "tenant-id", .also = "tenant", .value = "NAME", .type = OPT_TEXT, .help = "whose task it is" },
        { .name = "traceparent", .value = "TEXT", .type = OPT_TEXT, .help = "W3C trace context" },
        END,
};

static const struct option get_options[] = {
        { .name = "id", .also = "task-id", .value = "ID", .type = OPT_TEXT, MUST, .help = "the task's id" },
        AGENT(.help = "the result of this agent (default: the newest)"),
        { .name = "wait",
                .value = "TIME",
                .type = OPT_TIME,
                .flags = OPT_MAYBE,
                .min = 1,
                .max = 86400000,
                .help = "wait for it (30s, or as given)" },
        { .name = "result-only", .letter = 'r', .type = OPT_FLAG, .help = "print the result alone, as JSON" },
        END,
};

static const struct option list_options[] = {
        TOPIC(.help = "only of this topic"),
        AGENT(.help = "only of this agent"),
        { .name = "status", .value = "STATUS", .type = OPT_CHOICE, .choices = states, .help = "completed or failed" },
        { .name = "since", .value = "TIME", .type = OPT_TEXT, .help = "not older: a Unix time, or how long ago (90s, 10min, 2h, 1d)" },
        { .name = "until", .value = "TIME", .type = OPT_TEXT, .help = "not newer" },
        PAGES("20"),
        END,
};

static const struct option search_options[] = {
        { .name = "text", .value = "TEXT", .type = OPT_TEXT, MAY, .help = "words to find" },
        { .name = "filter",
                .value = "FILTER",
                .type = OPT_TEXT,
                .help = "a JSON object that the record must contain: '{\"agent\":\"counter\"}'" },
        PAGES("20"),
        END,
};

static const struct option delete_task[] = { { .name = "id",
                                                     .also = "task-id",
                                                     .value = "ID",
                                                     .type = OPT_TEXT,
                                                     .flags = OPT_POSITION | OPT_REQUIRED | OPT_REPEAT,
                                                     .help = "the task's id" },
        END };
static const struct option topics_options[] = { TOPIC(MAY, .help = "only this topic"), PAGES("100"), END };
static const struct option inspect_options[] = { TOPIC(MUST, .help = "the topic"), PAGES("20"), END };

static const struct option dlq_list[] = { TOPIC(MAY, .help = "only of this topic"), AGENT(MAY, .help = "only of this agent"),
        LIMIT("20 of each agent"), { .name = "all", .type = OPT_FLAG, .help = "all that there are" }, END };
#define DLQ_ID(...) \
        { .name = "id", .value = "ID", .type = OPT_TEXT, __VA_ARGS__ }
static const struct option dlq_show[] = { TOPIC(MUST, .help = "the topic"), AGENT(MUST, .help = "the agent"),
        DLQ_ID(MUST, .help = "the dead letter's id (dlq list shows it)"), END };
static const struct option dlq_some[] = { TOPIC(MUST, .help = "the topic"), AGENT(MUST, .help = "the agent"),
        DLQ_ID(.flags = OPT_POSITION | OPT_REPEAT, .help = "the dead letters' ids"),
        { .name = "all", .type = OPT_FLAG, .help = "all dead letters of the agent" }, END };

static const struct option clear_options[] = { { .name = "what",
                                                       .value = "WHAT",
                                                       .type = OPT_CHOICE,
                                                       .choices = clearable,
                                                       MUST,
                                                       .help = "agents, results, metrics, config or all" },
        END };

static const struct option query_options[] = {
        { .name = "query",
                .value = "QUERY",
                .type = OPT_TEXT,
                MUST,
                .help = "what to ask, in the storage's own language; - reads it from standard input" },
        { .name = "limit",
                .letter = 'n',
                .value = "N",
                .type = OPT_INT,
                .min = 1,
                .max = 10000,
                .help = "how many rows at most (default 100)" },
        END,
};
static const struct option configure_options[] = { TOPIC(MUST, .help = "the topic"),
        { .name = "partitions", .value = "N", .type = OPT_INT, .min = 1, .max = 10000, .help = "so many, not fewer than it has" },
        { .name = "retention", .value = "TIME", .type = OPT_TIME, .min = 0, .help = "how long what all groups have finished is kept (7d)" },
        END };
static const struct option migrate_options[] = { { .name = "to",
                                                         .value = "URL",
                                                         .type = OPT_TEXT,
                                                         .help = "the new storage; -: a line of standard input, so that a password need "
                                                                 "not stand on the command line; without it: the "
                                                                 "backup of STORAGE_BACKUP_URL" },
        { .name = "replace", .type = OPT_FLAG, .help = "the new storage may hold something: what this one does not hold is deleted there" },
        { .name = "detach", .letter = 'd', .type = OPT_FLAG, .help = "do not wait for the copy's end" }, END };
static const struct option verify_options[] = {
        { .name = "repair", .type = OPT_FLAG, .help = "bring what differs to the second storage again" }, END
};
static const struct option file_options[] = {
        { .name = "file", .value = "FILE", .type = OPT_TEXT, .offer = OFFER_FILES, MUST, .help = "the file; -: standard output or input" },
        END
};

#define KEY(...) \
        { .name = "key", .value = "KEY", .type = OPT_TEXT, .offer = OFFER_KEYS, __VA_ARGS__ }
static const struct option config_key[] = { KEY(MUST, .help = "the setting's name"), END };
static const struct option config_set[] = { KEY(MUST, .help = "the setting's name"),
        { .name = "value", .value = "VALUE", .type = OPT_TEXT, MUST, .help = "JSON, or text that becomes a JSON string" },
        { .name = "text", .type = OPT_FLAG, .help = "the value is text, even where it reads as JSON" }, END };
static const struct option config_list[] = {
        { .name = "prefix", .value = "PREFIX", .type = OPT_TEXT, MAY, .offer = OFFER_KEYS, .help = "only names that begin so" }, END
};

static const char *const events[] = { "publish", "deliver", "ack", "fail", "dead_letter", "expired", "connect", "disconnect", "register",
        NULL };
static const struct option watch_options[] = {
        TOPIC(MAY, .help = "only of this topic"),
        { .name = "event",
                .also = "events",
                .letter = 'e',
                .value = "EVENT",
                .type = OPT_CHOICE,
                .choices = events,
                .flags = OPT_REPEAT,
                .help = "only these: publish, deliver, ack, fail, dead_letter, expired, connect, disconnect, register; may stand several "
                        "times" },
        { .name = "count", .letter = 'n', .value = "N", .type = OPT_INT, .min = 1, .help = "end after N events" },
        END,
};
static const struct option top_options[] = {
        { .name = "interval", .letter = 'i', .value = "SECONDS", .type = OPT_TIME, .min = 100, .help = "how often (default 1)" },
        { .name = "count", .letter = 'n', .value = "N", .type = OPT_INT, .min = 1, .help = "end after N pictures (in a pipe: 1)" },
        END,
};
static const struct option call_options[] = {
        { .name = "method", .value = "METHOD", .type = OPT_TEXT, MUST, .help = "the method's name, such as task.publish" },
        { .name = "params",
                .value = "PARAMS",
                .type = OPT_TEXT,
                MAY,
                .help = "a JSON object (default {}); - reads it from standard input" },
        END,
};
static const struct option completion_options[] = {
        { .name = "shell", .value = "SHELL", .type = OPT_CHOICE, .choices = shells, MUST, .help = "bash, zsh or fish" }, END
};
static const struct option help_options[] = { { .name = "command",
                                                      .value = "COMMAND",
                                                      .type = OPT_TEXT,
                                                      .flags = OPT_POSITION | OPT_REPEAT,
                                                      .offer = OFFER_COMMANDS,
                                                      .help = "the command" },
        END };
static const struct option words_options[] = {
        { .name = "words", .value = "WORDS", .type = OPT_TEXT, .flags = OPT_POSITION | OPT_REPEAT, .help = "the words so far" }, END
};

#define EXAMPLES(...)                       \
        (const struct example[]) {          \
                __VA_ARGS__, { NULL, NULL } \
        }

const struct command ctl_commands[] = {
        { .path = "health",
                .summary = "how the daemon is",
                .options = none,
                .flags = CMD_READS,
                .run = cmd_health,
                .about = "Shows the state of the daemon, its bus and its storage, with the reasons where something is not as it should be. "
                         "Ends with 0 when it is running, ready or degraded, with 1 when it is down or stopping.",
                .examples = EXAMPLES({ "health", "the state, for people" }, { "health -q && echo up", "for scripts" },
                        { "health --watch", "again every two seconds" }) },
        { .path = "top",
                .summary = "topics, agents and rates, live",
                .options = top_options,
                .run = cmd_top,
                .about =
                        "A full screen of topics and their agents with what waits, what is leased, and how many tasks a second are "
                        "published, finished and failed. Keys: q ends, s sorts by the next column, the arrows scroll, space draws at once.",
                .examples =
                        EXAMPLES({ "top", "look on" }, { "top --count 1 --interval 5 | cat", "one picture, measured over five seconds" }) },
        { .path = "watch",
                .summary = "events as they happen",
                .options = watch_options,
                .run = cmd_watch,
                .about = "One line for each event of the daemon: publish, deliver, ack, fail, dead_letter, expired, connect, disconnect, "
                         "register. In a pipe each is a line of JSON. Goes on when the daemon is started anew.",
                .examples = EXAMPLES({ "watch", "all events" }, { "watch words -e fail -e dead_letter", "what goes wrong on one topic" },
                        { "watch --count 1 -e register >/dev/null", "wait until an agent registers" }) },
        { .path = "metrics",
                .summary = "counters and latencies",
                .options = may_topic,
                .flags = CMD_READS,
                .run = cmd_metrics,
                .about = "What the daemon has counted since it started: tasks by topic and by agent, with how long agents took (p50: half "
                         "of the tasks were faster).",
                .examples = EXAMPLES({ "metrics", "all topics" }, { "metrics words --format json", "one topic, for a program" }) },
        { .path = "backends",
                .summary = "buses and storages that this daemon knows",
                .options = none,
                .flags = CMD_READS,
                .run = cmd_backends,
                .about = "Each bus and storage with its URLs, whether it is installed and in use, and what it can.",
                .examples = EXAMPLES({ "backends", "the list" }, { "backends --format tree", "with the settings of each" }) },
        { .path = "reload",
                .summary = "let the daemon read its settings anew",
                .options = none,
                .run = cmd_reload,
                .about = "As SIGHUP does. Says which settings changed, and which of them need a restart. Settings that are wrong change "
                         "nothing.",
                .examples = EXAMPLES({ "reload", "after editing the file" }) },
        { .path = "call",
                .summary = "call any method of the protocol",
                .options = call_options,
                .run = cmd_call,
                .about = "Sends METHOD with PARAMS and prints the result as JSON.",
                .examples = EXAMPLES({ "call ping", "is anybody there?" },
                        { "call task.publish '{\"task\":{\"topic\":\"greet\",\"payload\":{\"content\":1}}}'",
                                "a task as the protocol has it" }) },

        { .path = "task", .summary = "publish tasks, see their results" },
        { .path = "task publish",
                .summary = "publish tasks",
                .options = publish_options,
                .run = cmd_task_publish,
                .about =
                        "Publishes a task and prints its id: the daemon has it durably then. The content is JSON; other text needs --text. "
                        "With --lines or --each-file many tasks go out in one stream; their ids are printed one a line when standard "
                        "output is no terminal. "
                        "With --wait the result is printed in place of the id; where the task failed, its error, and the exit code is 1.",
                .examples = EXAMPLES({ "task publish --topic greet '{\"name\": \"world\"}'", "one task" },
                        { "task publish --topic greet --wait '{\"name\": \"world\"}'", "and its result" },
                        { "task publish --topic words --text --lines < book.txt", "a task for each line" },
                        { "task publish --topic words --each-file *.txt", "a task for each file" },
                        { "task publish --topic mail --delay 10min --key customer-7 --file mail.json",
                                "later, and in order with others of that customer" }) },
        { .path = "task get",
                .also = "task result",
                .summary = "the result of a task",
                .options = get_options,
                .flags = CMD_READS,
                .run = cmd_task_get,
                .about = "Shows what became of a task: its result, or why it failed. Ends with 4 when there is no result (yet), with 5 "
                         "when none came within --wait.",
                .examples = EXAMPLES({ "task get 7d0f1e9a-5b7c-4c4e-9d53-3f1d2b8a9c10", "the record" },
                        { "task get 7d0f1e9a-5b7c-4c4e-9d53-3f1d2b8a9c10 --wait 10 -r", "the result alone, as soon as it is there" }) },
        { .path = "task list",
                .summary = "results, newest first",
                .options = list_options,
                .flags = CMD_READS,
                .run = cmd_task_list,
                .about = "Lists result records, newest first. Tasks that wait are seen with bus inspect.",
                .examples =
                        EXAMPLES({ "task list", "the last 20" }, { "task list --status failed --since 1h", "what failed in the last hour" },
                                { "task list --all --format compact | cut -f1", "all ids" }) },
        { .path = "task search",
                .summary = "find results",
                .options = search_options,
                .flags = CMD_READS,
                .run = cmd_task_search,
                .about = "Finds result records by words, where the storage can (omnictl backends: search).",
                .examples = EXAMPLES({ "task search invoice", "records with that word" }) },
        { .path = "task delete",
                .summary = "delete results",
                .options = delete_task,
                .flags = CMD_DESTROYS,
                .run = cmd_task_delete,
                .about = "Deletes the result records of tasks.",
                .examples = EXAMPLES({ "task delete 7d0f1e9a-5b7c-4c4e-9d53-3f1d2b8a9c10", "one" }) },

        { .path = "agent", .summary = "agents: list, steer, and run programs as agents" },
        { .path = "agent list",
                .summary = "the agents",
                .options = may_topic,
                .flags = CMD_READS,
                .run = cmd_agent_list,
                .about = "Every agent that is registered, whether a worker serves it now or not.",
                .examples = EXAMPLES({ "agent list", "all" }, { "agent list words", "of one topic" }) },
        { .path = "agent get",
                .summary = "one agent",
                .options = one_agent,
                .flags = CMD_READS,
                .run = cmd_agent_get,
                .about = "Its description, tools, configuration and workers.",
                .examples = EXAMPLES(
                        { "agent get words counter", "by position" }, { "agent get --topic words --name counter", "or by name" }) },
        { .path = "agent run",
                .summary = "make any program an agent",
                .options = run_options,
                .flags = CMD_PROGRAM,
                .run = cmd_agent_run,
                .about = "Runs PROGRAM once for each task. The content comes on standard input, as JSON (with --raw a string comes as its "
                         "text). What the program writes on "
                         "standard output is the result: JSON where it reads as JSON, else a JSON string; nothing is null.\n\n"
                         "Exit 0 finishes the task. Any other exit fails it, with what the program wrote on standard error (the last 8 "
                         "KiB), and it is tried again later; exit 100 fails it "
                         "for good, without another try. A program that a signal ends, that runs longer than --timeout or writes more than "
                         "--max-output fails its task too. "
                         "When the program ends, what it left running in its process group is ended as well.\n\n"
                         "The environment of the program has OMNI_TASK_ID, OMNI_TASK_TOPIC, OMNI_TASK_ATTEMPT, OMNI_AGENT, OMNI_TOPIC, "
                         "and, where the task has them, OMNI_TASK_KEY, "
                         "OMNI_TASK_CORRELATION_ID, OMNI_TASK_CAUSATION_ID, OMNI_TASK_REPLY_TO, OMNI_TASK_SOURCE, OMNI_TASK_TENANT_ID, "
                         "OMNI_TASK_HEADERS (JSON), OMNI_TASK_PRIORITY, "
                         "OMNI_TASK_CREATED_AT and TRACEPARENT.\n\n"
                         "SIGINT or SIGTERM: no more tasks are started, those that run are finished; a second one ends them, and the tasks "
                         "go back to the daemon. "
                         "A daemon that goes away is waited for; what ran then is ended, since another worker gets the task.",
                .examples = EXAMPLES({ "agent run --topic words --name counter -- wc -w", "count words" },
                        { "agent run --topic words --name counter --workers 4 --raw -- ./count.sh",
                                "four at once, text on standard input" },
                        { "agent run --topic jobs --name worker --timeout 10min --retry-limit 1 -- python3 job.py",
                                "with a time limit and one retry" },
                        { "agent run --topic jobs --name debug --once -- jq .", "take one task, look at it, end" }) },
        { .path = "agent pause",
                .also = "agent unsubscribe",
                .summary = "no more tasks for an agent",
                .options = one_agent,
                .run = cmd_agent_pause,
                .about = "No daemon delivers to it from now on; its tasks wait. Survives restarts.",
                .examples = EXAMPLES({ "agent pause words counter", "until agent resume" }) },
        { .path = "agent resume",
                .summary = "deliver to it again",
                .options = one_agent,
                .run = cmd_agent_resume,
                .about = "Ends a pause.",
                .examples = EXAMPLES({ "agent resume words counter", "go on" }) },
        { .path = "agent seek",
                .also = "agent replay",
                .summary = "have an agent start again somewhere",
                .options = seek_agent,
                .flags = CMD_DESTROYS,
                .run = cmd_agent_seek,
                .about =
                        "What the agent was given from there on is given to it again, as far as the bus still has it: what all agents have "
                        "finished is kept for as long as the bus's URL says (retention_ms). What its workers hold is taken from them.",
                .examples = EXAMPLES({ "agent seek words counter --to first", "all of it once more" },
                        { "agent seek words counter --to 1764424800 --yes", "what came since then; date -d 14:00 +%s prints such a time" },
                        { "agent seek words counter --to new", "leave out what waits" }) },
        { .path = "agent delete",
                .summary = "delete an agent",
                .options = delete_agent,
                .flags = CMD_DESTROYS,
                .run = cmd_agent_delete,
                .about = "Deletes the agent and its group: what waits for it is not delivered to it any more. Workers that serve it are "
                         "told. Its dead letters stay unless --dead-letters is given.",
                .examples = EXAMPLES({ "agent delete words counter", "asks first" },
                        { "agent delete words counter --dead-letters --yes", "for scripts" }) },

        { .path = "topic", .summary = "topics as a whole" },
        { .path = "topic delete",
                .summary = "delete a topic",
                .options = delete_topic,
                .flags = CMD_DESTROYS,
                .run = cmd_topic_delete,
                .about = "Deletes the topic with the tasks that it holds and its agents.",
                .examples = EXAMPLES({ "topic delete words", "asks first" }) },

        { .path = "bus", .summary = "what the bus holds" },
        { .path = "bus topics",
                .also = "bus list",
                .summary = "the topics",
                .options = topics_options,
                .flags = CMD_READS,
                .run = cmd_bus_topics,
                .about = "Each topic with how many tasks it holds.",
                .examples = EXAMPLES({ "bus topics", "all" }) },
        { .path = "bus groups",
                .summary = "the groups of agents",
                .options = may_topic,
                .flags = CMD_READS,
                .run = cmd_bus_groups,
                .about = "Each agent's group: what waits (lag), is being worked on (leased), waits for a retry, or is dead.",
                .examples = EXAMPLES(
                        { "bus groups words", "of one topic" }, { "bus groups --format compact | awk '$4 > 100'", "groups that lag" }) },
        { .path = "bus inspect",
                .summary = "tasks that a topic holds",
                .options = inspect_options,
                .flags = CMD_READS,
                .run = cmd_bus_inspect,
                .about = "The tasks on a topic, oldest first, without taking them.",
                .examples = EXAMPLES({ "bus inspect words", "the oldest 20" }) },
        { .path = "bus configure",
                .summary = "partitions and retention of a topic",
                .options = configure_options,
                .run = cmd_bus_configure,
                .about = "Shows what a topic has of its own on a bus that has such settings (Kafka), and changes what is named. A topic "
                         "that is "
                         "missing is made. Partitions can only become more, and keys may go to others then.",
                .examples = EXAMPLES({ "bus configure words", "as it is" },
                        { "bus configure words --partitions 6", "six daemons can share it" },
                        { "bus configure words --retention 7d", "what is finished can be replayed for a week" }) },
        { .path = "bus dlq",
                .summary = "dead letters (as dlq list)",
                .options = dlq_list,
                .flags = CMD_READS,
                .run = cmd_dlq_list,
                .about = "The same as dlq list.",
                .examples = EXAMPLES({ "bus dlq words", "of one topic" }) },
        { .path = "bus stats",
                .summary = "topics with their groups",
                .options = may_topic,
                .flags = CMD_READS,
                .run = cmd_bus_stats,
                .about = "Every topic with its groups, and the sums.",
                .examples = EXAMPLES({ "bus stats", "all" }, { "bus stats --watch 1", "again every second" }) },

        { .path = "dlq", .summary = "dead letters: tasks that failed for good" },
        { .path = "dlq list",
                .summary = "the dead letters",
                .options = dlq_list,
                .flags = CMD_READS,
                .run = cmd_dlq_list,
                .about = "Tasks that failed more often than the agent's retries, with the last error; oldest first.",
                .examples = EXAMPLES({ "dlq list", "of all agents" }, { "dlq list words counter --all", "of one" }) },
        { .path = "dlq show",
                .summary = "one dead letter",
                .options = dlq_show,
                .flags = CMD_READS,
                .run = cmd_dlq_show,
                .about = "The whole task with its error.",
                .examples = EXAMPLES({ "dlq show words counter 12", "the error, and the content" }) },
        { .path = "dlq replay",
                .summary = "try dead letters again",
                .options = dlq_some,
                .run = cmd_dlq_replay,
                .about = "Gives dead letters back to their agent, with attempts starting anew. Other agents of the topic do not get them.",
                .examples = EXAMPLES({ "dlq replay words counter 12 13", "two of them" },
                        { "dlq replay words counter --all", "all, after the fault is mended" }) },
        { .path = "dlq purge",
                .summary = "delete dead letters",
                .options = dlq_some,
                .flags = CMD_DESTROYS,
                .run = cmd_dlq_purge,
                .about = "Deletes dead letters for ever.",
                .examples = EXAMPLES({ "dlq purge words counter --all", "asks first" }) },

        { .path = "storage", .summary = "the storage of results, agents and settings" },
        { .path = "storage health",
                .summary = "how the storage is",
                .options = none,
                .flags = CMD_READS,
                .run = cmd_storage_health,
                .about = "Whether it answers, how fast, and what it says of itself.",
                .examples = EXAMPLES({ "storage health", "the state" }) },
        { .path = "storage clear",
                .summary = "empty the storage",
                .options = clear_options,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_clear,
                .about = "Deletes all records of a kind.",
                .examples = EXAMPLES({ "storage clear results", "asks first" }) },
        { .path = "storage clear-agents",
                .summary = "as storage clear agents",
                .options = none,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_clear_agents,
                .about = "The same as storage clear agents.",
                .examples = EXAMPLES({ "storage clear-agents", "asks first" }) },
        { .path = "storage clear-results",
                .summary = "as storage clear results",
                .options = none,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_clear_results,
                .about = "The same as storage clear results.",
                .examples = EXAMPLES({ "storage clear-results", "asks first" }) },
        { .path = "storage clear-metrics",
                .summary = "as storage clear metrics",
                .options = none,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_clear_metrics,
                .about = "The same as storage clear metrics.",
                .examples = EXAMPLES({ "storage clear-metrics", "asks first" }) },
        { .path = "storage clear-all",
                .summary = "as storage clear all",
                .options = none,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_clear_all,
                .about = "The same as storage clear all.",
                .examples = EXAMPLES({ "storage clear-all", "asks first" }) },

        { .path = "storage query",
                .summary = "ask the storage in its own language",
                .options = query_options,
                .flags = CMD_READS | CMD_CSV,
                .run = cmd_storage_query,
                .about = "Runs a query that reads, where the storage has a language of its own (omnictl backends: query): SQL on "
                         "PostgreSQL. "
                         "The storage refuses what writes. --timeout is how long it may run there.",
                .examples = EXAMPLES({ "storage query 'select status, count(*) from results group by status'", "a table" },
                        { "storage query --format csv - < report.sql > report.csv", "for a spreadsheet" }) },
        { .path = "storage migrate",
                .summary = "copy to another storage, while all goes on",
                .options = migrate_options,
                .run = cmd_storage_migrate,
                .about = "Copies all records to a new storage, and from then on writes to both. Agents go on working. The daemon does it, "
                         "by "
                         "itself once begun, over restarts; at most STORAGE_COPY_RATE records a second. Begun again, it goes on. Then: "
                         "storage "
                         "verify, and storage switch three times.",
                .examples = EXAMPLES({ "storage migrate --to redis://10.0.0.5:6379", "shows how far it is" },
                        { "storage migrate --to - < url", "the URL from a file" }) },
        { .path = "storage status",
                .summary = "how far a migration is",
                .options = none,
                .flags = CMD_READS,
                .run = cmd_storage_status,
                .about = "The step of a migration or a backup, how much is copied, and what changes are still to be brought over.",
                .examples = EXAMPLES({ "storage status --watch", "again and again" }) },
        { .path = "storage verify",
                .summary = "compare both storages",
                .options = verify_options,
                .run = cmd_storage_verify,
                .about = "Compares every record of both storages, while all goes on. Lists what is missing in the new one, different, or "
                         "extra; "
                         "exit code 1 where something is.",
                .examples = EXAMPLES({ "storage verify", "all records" }, { "storage verify --repair", "and mend the second one" }) },
        { .path = "storage switch",
                .summary = "the next step to the new storage",
                .options = none,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_switch,
                .about = "First reads come from the new storage; then it is the primary and the old one follows; then the old one is let "
                         "go. The "
                         "last step asks.",
                .examples = EXAMPLES({ "storage switch", "one step" }) },
        { .path = "storage abort",
                .summary = "go back to the old storage",
                .options = none,
                .flags = CMD_DESTROYS,
                .run = cmd_storage_abort,
                .about = "Ends a migration: the old storage is in use alone, with all that was written meanwhile. Possible until the last "
                         "switch.",
                .examples = EXAMPLES({ "storage abort", "asks first" }) },
        { .path = "storage export",
                .summary = "write all records to a file",
                .options = file_options,
                .run = cmd_storage_export,
                .about = "JSON lines: a header, a record a line, and a trailer with counts. The file appears when it is whole.",
                .examples = EXAMPLES({ "storage export backup.jsonl", "a backup" }, { "storage export - | gzip > backup.gz", "packed" }) },
        { .path = "storage import",
                .summary = "read records from such a file",
                .options = file_options,
                .run = cmd_storage_import,
                .about = "Writes the records of an export; those with the same key are replaced, metrics that are there are left out. A "
                         "file that "
                         "is cut off is refused before anything is written; from a pipe that is seen at its end only.",
                .examples = EXAMPLES({ "storage import backup.jsonl", "all of it" }) },

        { .path = "config", .summary = "settings that agents share, kept in the storage" },
        { .path = "config get",
                .summary = "a setting's value",
                .options = config_key,
                .flags = CMD_READS,
                .run = cmd_config_get,
                .about = "Prints the value, as JSON.",
                .examples = EXAMPLES({ "config get model", "its value" }) },
        { .path = "config set",
                .summary = "set it",
                .options = config_set,
                .run = cmd_config_set,
                .about = "The value is JSON where it reads as JSON, else text.",
                .examples = EXAMPLES({ "config set model small", "text" }, { "config set limits '{\"tokens\": 4000}'", "JSON" }) },
        { .path = "config list",
                .summary = "the settings",
                .options = config_list,
                .flags = CMD_READS,
                .run = cmd_config_list,
                .about = "All settings, or those whose names begin with PREFIX. The table leaves out the daemon's own, which begin with "
                         "\"_\", unless PREFIX asks for them.",
                .examples = EXAMPLES({ "config list", "all" }) },
        { .path = "config delete",
                .summary = "delete it",
                .options = config_key,
                .flags = CMD_DESTROYS,
                .run = cmd_config_delete,
                .about = "Deletes a setting.",
                .examples = EXAMPLES({ "config delete model", "asks first" }) },

        { .path = "completion",
                .summary = "print completions for a shell",
                .options = completion_options,
                .run = cmd_completion,
                .about = "Prints a script that completes commands, options, and topics and agents of the running daemon.",
                .examples = EXAMPLES({ "completion bash > ~/.local/share/bash-completion/completions/omnictl", "for bash" },
                        { "completion zsh > ~/.zfunc/_omnictl", "for zsh, with ~/.zfunc in fpath" },
                        { "completion fish > ~/.config/fish/completions/omnictl.fish", "for fish" }) },
        { .path = "version",
                .summary = "versions of this program and of the daemon",
                .options = none,
                .run = cmd_version,
                .about = "Prints the version of this program and, where a daemon answers, the daemon's.",
                .examples = EXAMPLES({ "version", "both" }) },
        { .path = "help",
                .summary = "help for a command",
                .options = help_options,
                .run = cmd_help,
                .about = "The same as COMMAND --help.",
                .examples = EXAMPLES({ "help task publish", "one command" }) },
        { .path = "__complete",
                .summary = "candidates for the last word",
                .options = words_options,
                .flags = CMD_HIDDEN | CMD_PROGRAM,
                .run = cmd_complete },
        { .path = "__man", .summary = "the man page", .options = none, .flags = CMD_HIDDEN, .run = cmd_man },
        { .path = NULL },
};
