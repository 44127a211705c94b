/* SPDX-License-Identifier: Apache-2.0 */
/* What the library and the brokers say, as an error that names what to mend. Thread: any. */
#include "bus_state.h"

static const struct {
        rd_kafka_resp_err_t err;
        enum om_kind kind;
        const char *mend;
} known[] = {
        { RD_KAFKA_RESP_ERR__AUTHENTICATION, OM_UNAVAILABLE, "the brokers refuse user and password of the URL (or the mechanism, sasl=)" },
        { RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED, OM_UNAVAILABLE,
                "the brokers refuse user and password of the URL (or the mechanism, sasl=)" },
        { RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM, OM_UNAVAILABLE, "the brokers do not have this mechanism: sasl=" },
        { RD_KAFKA_RESP_ERR__RESOLVE, OM_UNAVAILABLE, "the name of a broker in the URL does not resolve" },
        { RD_KAFKA_RESP_ERR__SSL, OM_UNAVAILABLE, "TLS failed (tls, tls_ca_file, tls_cert_file, tls_key_file)" },
        { RD_KAFKA_RESP_ERR__TRANSPORT, OM_UNAVAILABLE,
                "no connection to the brokers (does the name resolve? do they want what the URL does not give: tls, tls_cert_file, "
                "sasl?)" },
        { RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, OM_UNAVAILABLE, "no broker answers" },
        { RD_KAFKA_RESP_ERR__TIMED_OUT, OM_UNAVAILABLE, "the brokers do not answer (do they want what the URL does not give: tls, sasl?)" },
        { RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE, OM_UNAVAILABLE, "the brokers do not answer" },
        { RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, OM_UNAVAILABLE, "the brokers did not confirm it; it may have been published" },
        { RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, OM_UNAVAILABLE, "the brokers did not manage it in time" },
        { RD_KAFKA_RESP_ERR__PURGE_QUEUE, OM_UNAVAILABLE, "the brokers are away" },
        { RD_KAFKA_RESP_ERR__PURGE_INFLIGHT, OM_UNAVAILABLE, "the brokers are away; it may have been published" },
        { RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, OM_DENIED, "the URL's user lacks the permission for this topic" },
        { RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, OM_DENIED, "the URL's user lacks the permission for the consumer group (group=)" },
        { RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, OM_DENIED, "the URL's user lacks a permission on the cluster" },
        { RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, OM_DENIED,
                "the URL's user lacks the permission for the transactional id (instance=)" },
        { RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, OM_LIMIT,
                "the task is larger than the topic takes (its max.message.bytes; max_message_bytes of the URL)" },
        { RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR, OM_INVALID, "there are not as many brokers (replicas)" },
        { RD_KAFKA_RESP_ERR_INVALID_PARTITIONS, OM_INVALID, "the number of partitions cannot be (partitions)" },
        { RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, OM_INVALID, "the topic's name cannot be, or differs from another only by \".\" and \"_\"" },
        { RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT, OM_INVALID,
                "session_timeout_ms is not within the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms" },
        { RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, OM_NOT_FOUND, "there is no such topic or partition" },
        { RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, OM_NOT_FOUND, "there is no such topic" },
        { RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, OM_NOT_FOUND, "there is no such partition" },
        { RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, OM_UNAVAILABLE, "fewer replicas are in sync than min.insync.replicas" },
        { RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, OM_CONFLICT, "another daemon has the same name (instance=, or a copied state folder)" },
        { RD_KAFKA_RESP_ERR_POLICY_VIOLATION, OM_DENIED, "a policy of the brokers forbids it" },
};

int kafka_error(rd_kafka_resp_err_t err, const char *text, const char *what, struct om_error *e) {
        const char *mend = NULL;
        enum om_kind kind = OM_UNAVAILABLE;

        if (!err)
                return 0;
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]) && !mend; i++)
                if (known[i].err == err) {
                        kind = known[i].kind;
                        mend = known[i].mend;
                }
        return om_error_set(
                e, kind, "Kafka: %s: %s%s%.250s", what, mend ? mend : "", mend ? ": " : "", text && *text ? text : rd_kafka_err2str(err));
}

int kafka_send_error(rd_kafka_resp_err_t err, const char **ret_why) {
        *ret_why = NULL;
        if (!err)
                return 0;
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
                if (known[i].err == err) {
                        *ret_why = known[i].mend;
                        return om_kind_errno(known[i].kind);
                }
        *ret_why = rd_kafka_err2str(err);
        return om_kind_errno(OM_UNAVAILABLE);
}
