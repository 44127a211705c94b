/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3: settings written and read through the daemon, beside libcurl alone with the same requests to the same server: a conditional PUT of an
 * object as large, a GET. libcurl alone signs by its own CURLOPT_AWS_SIGV4 and says UNSIGNED-PAYLOAD, we hash what is sent.
 *
 * As many requests are under way on both sides, and each side keeps as many connections. The server is MinIO (tests/servers/s3.sh).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lib/server.h"
#include "bench.h"

#ifdef HAVE_CURL
#include <curl/curl.h>

enum { UNDER_WAY = 32 };

static char folder[64], bucket[200];
static struct om_test_server *server;
static struct daemon d;

/* -- libcurl alone -------------------------------------------------------------------------------------------------------------- */

struct native {
        CURLM *multi;
        CURL *easy[UNDER_WAY];
        struct curl_slist *put, *get;
        bool reads;
        long total, sent, done;
        double *us, *sent_at; /* NULL: not timed; then one at a time */
};

static size_t ignore(char *data, size_t size, size_t n, void *ctx) { return size * n; }

static void must_curl(int ok, const char *what) {
        if (!ok)
                die("libcurl", what);
}

static void native_send(struct native *n, CURL *easy) {
        static char record[RECORD_BYTES];
        char url[600];
        if (!record[0])
                memset(record, 'x', sizeof(record));
        snprintf(url, sizeof(url), "%s/native-%s%ld", bucket, n->us ? "timed-" : "", n->sent);
        curl_easy_setopt(easy, CURLOPT_URL, url);
        if (n->reads)
                curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
        else {
                curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, (long) sizeof(record));
                curl_easy_setopt(easy, CURLOPT_POSTFIELDS, record);
        }
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, n->reads ? "GET" : "PUT");
        curl_easy_setopt(easy, CURLOPT_HTTPHEADER, n->reads ? n->get : n->put);
        if (n->us)
                n->sent_at[n->sent] = now_s();
        n->sent++;
        must_curl(curl_multi_add_handle(n->multi, easy) == CURLM_OK, "curl_multi_add_handle");
}

static void native_run(struct native *n) {
        int at_once = n->us ? 1 : UNDER_WAY, running, left;
        for (int i = 0; i < at_once && n->sent < n->total; i++)
                native_send(n, n->easy[i]);
        while (n->done < n->total) {
                CURLMsg *msg;
                curl_multi_perform(n->multi, &running);
                while ((msg = curl_multi_info_read(n->multi, &left))) {
                        CURL *easy = msg->easy_handle;
                        long status = 0;
                        curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
                        must_curl(msg->data.result == CURLE_OK && status == 200, "the server refuses a request");
                        if (n->us)
                                n->us[n->done] = (now_s() - n->sent_at[n->done]) * 1e6;
                        n->done++;
                        curl_multi_remove_handle(n->multi, easy);
                        if (n->sent < n->total)
                                native_send(n, easy);
                }
                if (n->done < n->total)
                        curl_multi_poll(n->multi, NULL, 0, 1000, NULL);
        }
}

static double native(bool reads, long total, double *us) {
        struct native n = { .multi = curl_multi_init(), .reads = reads, .total = total, .us = us };
        const char *url = om_test_server_value(server, "store_url") + strlen("s3://");
        char *who = curl_easy_unescape(NULL, url, (int) strcspn(url, "@"), NULL);
        double started;
        must_curl(n.multi && who, "curl_multi_init");
        n.sent_at = us ? calloc((size_t) total, sizeof(double)) : NULL;
        n.get = curl_slist_append(NULL, "x-amz-content-sha256: UNSIGNED-PAYLOAD");
        n.put = curl_slist_append(NULL, "Content-Type: application/octet-stream");
        n.put = curl_slist_append(n.put, "If-None-Match: *");
        n.put = curl_slist_append(n.put, "x-amz-content-sha256: UNSIGNED-PAYLOAD");
        for (int i = 0; i < UNDER_WAY; i++) {
                n.easy[i] = curl_easy_init();
                must_curl(n.easy[i] != NULL, "curl_easy_init");
                curl_easy_setopt(n.easy[i], CURLOPT_AWS_SIGV4, "aws:amz:us-east-1:s3");
                curl_easy_setopt(n.easy[i], CURLOPT_USERPWD, who);
                curl_easy_setopt(n.easy[i], CURLOPT_WRITEFUNCTION, ignore);
        }
        started = now_s();
        native_run(&n);
        started = now_s() - started;
        for (int i = 0; i < UNDER_WAY; i++)
                curl_easy_cleanup(n.easy[i]);
        curl_multi_cleanup(n.multi);
        curl_slist_free_all(n.get);
        curl_slist_free_all(n.put);
        curl_free(who);
        free(n.sent_at);
        return started;
}

/* -- through the daemon ----------------------------------------------------------------------------------------------------------- */

struct ours {
        omni_client *client;
        bool reads;
        long total, sent, done;
        double *us, *sent_at;
};

static void ours_send(struct ours *o);

static void ours_answered(omni_client *client, int status, const char *result, size_t len, const char *error, void *user) {
        struct ours *o = user;
        if (status < 0)
                die("the daemon", error);
        if (o->us)
                o->us[o->done] = (now_s() - o->sent_at[o->done]) * 1e6;
        o->done++;
        if (o->sent < o->total)
                ours_send(o);
}

static void ours_send(struct ours *o) {
        static char content[CONTENT_BYTES];
        char params[CONTENT_BYTES + 200];
        if (!content[0])
                memset(content, 'x', sizeof(content) - 1);
        snprintf(params, sizeof(params), o->reads ? "{\"key\":\"%s%ld\"}" : "{\"key\":\"%s%ld\",\"value\":\"%s\"}", o->us ? "timed-" : "",
                o->sent, content);
        if (o->us)
                o->sent_at[o->sent] = now_s();
        o->sent++;
        if (omni_call_async(o->client, o->reads ? "config.get" : "config.set", params, ours_answered, o) < 0)
                die("the daemon", omni_strerror(o->client));
}

static double ours(bool reads, long total, double *us) {
        struct ours o = { .client = client_new(&d), .reads = reads, .total = total, .us = us };
        double started = now_s();
        o.sent_at = us ? calloc((size_t) total, sizeof(double)) : NULL;
        for (int i = 0; i < (us ? 1 : UNDER_WAY) && o.sent < total; i++)
                ours_send(&o);
        while (o.done < total)
                if (omni_run_once(o.client, 1000) < 0)
                        die("the daemon", omni_strerror(o.client));
        omni_free(o.client);
        free(o.sent_at);
        return now_s() - started;
}

/* -- cases --------------------------------------------------------------------------------------------------------------------------- */

static void server_start(void) {
        char url[400];
        const char *text;
        size_t n;
        folder_new(folder);
        setenv("OMNI_TEST_ON_DISK", "1", 1);
        server = om_test_server_start("s3", folder);
        text = om_test_server_value(server, "store_url");
        n = strcspn(text, "{");
        snprintf(url, sizeof(url), "%.*sbench%s", (int) n, text, text + n + strlen("{case}"));
        snprintf(bucket, sizeof(bucket), "%s/omnidaemon-test", strstr(text, "endpoint=") + strlen("endpoint="));
        setenv("STORAGE_URL", url, 1);
        daemon_start(&d, "local:?durability=memory");
        unsetenv("STORAGE_URL");
}

static void server_stop(void) {
        daemon_stop(&d);
        om_test_server_stop(server);
        folder_remove(folder);
}

void case_s3(void) {
        long n = scaled(4000);
        server_start();
        figure("s3_native_write", (double) n / native(false, n, NULL));
        figure("s3_write", (double) n / ours(false, n, NULL));
        figure("s3_native_read", (double) n / native(true, n, NULL));
        figure("s3_read", (double) n / ours(true, n, NULL));
        server_stop();
}

static void timed(const char *name, double (*run)(bool, long, double *), bool reads, long n) {
        double *us = calloc((size_t) n, sizeof(double));
        run(reads, n, us);
        figure_quantiles(name, us, n);
        free(us);
}

void case_s3_latency(void) {
        long n = scaled(1000);
        server_start();
        timed("latency_s3_native_write", native, false, n);
        timed("latency_s3_write", ours, false, n);
        timed("latency_s3_native_read", native, true, n);
        timed("latency_s3_read", ours, true, n);
        server_stop();
}
#else
void case_s3_latency(void) {}
void case_s3(void) { figure_missing("s3_native_write", "built without libcurl; packaging/install-deps.sh bench installs it"); }
#endif
