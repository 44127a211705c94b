/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker's errors mean (AMQP 0-9-1, section 1.2 of its reference; RabbitMQ puts the particulars into the text), and what to mend.
 * Pure.
 */
#include <stdio.h>

#include "link.h"

static bool has(const char *text, const char *word) { return strstr(text, word) != NULL; }

/* Of the broker: printable, one line. */
static void clean(char *out, size_t size, struct om_span text) {
        size_t n = text.len < size - 1 ? text.len : size - 1;

        for (size_t i = 0; i < n; i++)
                out[i] = text.p[i];
        out[n] = 0;
        for (char *p = out; *p; p++)
                if ((unsigned char) *p < ' ' || (unsigned char) *p > '~')
                        *p = '?';
}

static int refused(const char *text, const char *where, const struct rmq_settings *s, bool login, struct om_error *e) {
        if (login && has(text, "Login was refused"))
                return om_error_set(e, OM_DENIED, "RabbitMQ at %s refuses the login: mend the user and password of the URL%s", where,
                        strcmp(s->user, "guest") == 0 ? " (a broker lets guest in from its own machine only)" : "");
        if (has(text, "vhost") && login)
                return om_error_set(e, OM_DENIED, "RabbitMQ at %s: the user %.60s has no permissions in the virtual host %.60s: %.200s",
                        where, s->user, s->vhost, text);
        return om_error_set(e, OM_DENIED, "RabbitMQ at %s: the user %.60s lacks a permission (rabbitmqctl set_permissions): %.250s", where,
                s->user, text);
}

static int not_allowed(const char *text, const char *where, const struct rmq_settings *s, struct om_error *e) {
        if (has(text, "not found"))
                return om_error_set(e, OM_INVALID, "RabbitMQ at %s has no virtual host %.100s: mend the path of the URL", where, s->vhost);
        if (has(text, "limit"))
                return om_error_set(e, OM_LIMIT, "RabbitMQ at %s: a limit is reached: %.250s", where, text);
        if (has(text, "vhost"))
                return om_error_set(e, OM_DENIED, "RabbitMQ at %s: the user %.60s may not use the virtual host %.60s: %.200s", where,
                        s->user, s->vhost, text);
        return om_error_set(e, OM_DENIED, "RabbitMQ at %s: %.300s", where, text);
}

static int precondition(const char *text, const char *where, struct om_error *e) {
        if (has(text, "limit"))
                return om_error_set(
                        e, OM_LIMIT, "RabbitMQ at %s: a limit of the virtual host is reached (set_vhost_limits): %.250s", where, text);
        if (has(text, "message size"))
                return om_error_set(
                        e, OM_LIMIT, "RabbitMQ at %s: the task is larger than the broker's max_message_size: %.200s", where, text);
        if (has(text, "'type' for exchange"))
                return om_error_set(e, OM_INVALID, "RabbitMQ at %s: exchange_type of the URL is not the exchange's: %.250s", where, text);
        if (has(text, "timed out"))
                return om_error_set(e, OM_UNAVAILABLE,
                        "RabbitMQ at %s takes tasks back that were worked on for longer than its consumer_timeout: %.200s", where, text);
        return om_error_set(e, OM_INVALID, "RabbitMQ at %s: %.400s", where, text);
}

int rmq_error(unsigned code, struct om_span reply, const char *where, const struct rmq_settings *s, bool login, struct om_error *e) {
        char text[256];

        clean(text, sizeof text, reply);
        switch (code) {
        case AMQP_ACCESS_REFUSED:
                return refused(text, where, s, login, e);
        case AMQP_NOT_ALLOWED:
                return not_allowed(text, where, s, e);
        case AMQP_INVALID_PATH:
                return om_error_set(e, OM_INVALID, "RabbitMQ at %s has no virtual host %.100s: mend the path of the URL", where, s->vhost);
        case AMQP_NOT_FOUND:
                return om_error_set(e, OM_NOT_FOUND,
                        "RabbitMQ at %s: %.300s; what nobody has made, the URL's user needs the configure permission for", where, text);
        case AMQP_PRECONDITION_FAILED:
                return precondition(text, where, e);
        case AMQP_RESOURCE_LOCKED:
                return om_error_set(e, OM_CONFLICT, "RabbitMQ at %s: %.300s", where, text);
        case AMQP_CONTENT_TOO_LARGE:
        case AMQP_RESOURCE_ERROR:
                return om_error_set(e, OM_LIMIT, "RabbitMQ at %s: %.300s", where, text);
        case AMQP_NOT_IMPLEMENTED:
        case AMQP_COMMAND_INVALID:
                return om_error_set(e, OM_UNSUPPORTED, "RabbitMQ at %s: %.300s", where, text);
        case AMQP_CONNECTION_FORCED:
                return om_error_set(e, OM_UNAVAILABLE, "RabbitMQ at %s closes the connection: %.300s", where, text);
        default:
                return om_error_set(e, OM_UNAVAILABLE, "RabbitMQ at %s: %.300s", where, text);
        }
}
