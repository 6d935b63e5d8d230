/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words for what went wrong. A connection fails once: the first reason stays.
 * The certificate's verdict is looked at first, then the peer's alert, then
 * whether the peer spoke TLS at all, then OpenSSL's own account.
 */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <stdarg.h>
#include <stdio.h>
#include "io/tls_internal.h"

static const char *const failure_names[_TLS_FAIL_MAX] = {
#define X(name, text) [TLS_FAIL_##name] = text,
	TLS_FAILURES(X)
#undef X
};

const char *tls_failure_name(enum tls_failure f)
{
	return f < _TLS_FAIL_MAX ? failure_names[f] : "unknown";
}

enum tls_failure tls_failure(const struct tls *t)
{
	return t->failure;
}

const char *tls_open_failure(const struct tls *t)
{
	switch (t->failure) {
	case TLS_FAIL_TRUNCATED:
		return "the peer ended TLS without close_notify";
	case TLS_FAIL_REKEY:
		return "the peer changed its keys and the kernel can not follow";
	case TLS_FAIL_NONE:
	case TLS_FAIL_SOCKET:
		return NULL;
	default:
		return t->alert_in ? SSL_alert_desc_string_long(t->alert_in - 1) : "the peer broke the TLS protocol";
	}
}

const char *tls_reason(const struct tls *t)
{
	return t->reason;
}

int tls_fail(struct tls *t, int code, enum tls_failure f, const char *fmt, ...)
{
	va_list ap;

	if (t->state == TLS_FAILED)
		return t->final;
	t->state = TLS_FAILED;
	t->final = code;
	t->failure = f;
	va_start(ap, fmt);
	vsnprintf(t->reason, sizeof(t->reason), fmt, ap);
	va_end(ap);
	return code;
}

int tls_fail_alert(struct tls *t, uint8_t alert)
{
	enum tls_failure f = TLS_FAIL_ALERT;

	t->alert_in = (uint8_t)(alert + 1);
	if (alert == SSL_AD_PROTOCOL_VERSION)
		f = TLS_FAIL_VERSION;
	else if (alert == SSL_AD_NO_APPLICATION_PROTOCOL)
		f = TLS_FAIL_ALPN;
	return tls_fail(t, -EPROTO, f, "peer sent alert %u: %s", alert, SSL_alert_desc_string_long(alert));
}

int tls_fail_socket(struct tls *t, int error)
{
	return tls_fail(t, -error, TLS_FAIL_SOCKET, "socket: %s", strerror(error));
}

void tls_error_text(char *err, size_t n)
{
	unsigned long e = ERR_peek_error();
	const char *reason = e ? ERR_reason_error_string(e) : NULL;

	if (ERR_SYSTEM_ERROR(e))
		snprintf(err, n, "%s", strerror((int)ERR_GET_REASON(e)));
	else
		snprintf(err, n, "%s", reason ? reason : "unknown error");
	ERR_clear_error();
}

/* A rejected certificate: X509_verify_cert's codes, and what they mean to a person. */
static const struct {
	int code;
	enum tls_failure failure;
	const char *text;
} verdicts[] = {
	{ X509_V_ERR_CERT_HAS_EXPIRED, TLS_FAIL_EXPIRED, "certificate has expired" },
	{ X509_V_ERR_CERT_NOT_YET_VALID, TLS_FAIL_NOT_YET_VALID, "certificate is not yet valid" },
	{ X509_V_ERR_HOSTNAME_MISMATCH, TLS_FAIL_WRONG_NAME, "certificate is for another name" },
	{ X509_V_ERR_IP_ADDRESS_MISMATCH, TLS_FAIL_WRONG_NAME, "certificate is for another address" },
	{ X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, TLS_FAIL_SELF_SIGNED, "certificate is self-signed" },
	{ X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN, TLS_FAIL_UNTRUSTED, "certificate chain ends in an untrusted root" },
	{ X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, TLS_FAIL_UNTRUSTED, "certificate's issuer is not known" },
	{ X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY, TLS_FAIL_UNTRUSTED, "certificate's issuer is not trusted" },
	{ X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE, TLS_FAIL_UNTRUSTED, "certificate's issuer is not trusted" },
	{ X509_V_ERR_CERT_SIGNATURE_FAILURE, TLS_FAIL_UNTRUSTED,
	  "certificate's signature is not by the trusted issuer of that name" },
	{ X509_V_ERR_CERT_UNTRUSTED, TLS_FAIL_UNTRUSTED, "certificate's root is not trusted" },
	{ X509_V_ERR_CERT_REVOKED, TLS_FAIL_REVOKED, "certificate is revoked" },
	{ X509_V_ERR_UNABLE_TO_GET_CRL, TLS_FAIL_NO_CRL, "no revocation list of the certificate's issuer" },
	{ X509_V_ERR_CRL_HAS_EXPIRED, TLS_FAIL_NO_CRL, "revocation list has expired" },
	{ X509_V_ERR_CRL_NOT_YET_VALID, TLS_FAIL_NO_CRL, "revocation list is not yet valid" },
	{ X509_V_ERR_CRL_SIGNATURE_FAILURE, TLS_FAIL_NO_CRL, "revocation list has a bad signature" },
};

static int fail_verdict(struct tls *t, long code)
{
	const char *text = X509_verify_cert_error_string(code);
	enum tls_failure f = TLS_FAIL_CERTIFICATE;

	for (size_t i = 0; i < ARRAY_SIZE(verdicts); i++)
		if (verdicts[i].code == code) {
			text = verdicts[i].text;
			f = verdicts[i].failure;
		}
	if (f == TLS_FAIL_WRONG_NAME)
		return tls_fail(t, -EPROTO, f, "%s than %s", text, t->server_name ? t->server_name : "");
	return tls_fail(t, -EPROTO, f, "%s", text);
}

/* A TLS record starts with its type, 20 to 23, and the major version 3 (RFC 8446 5.1). */
static bool spoke_tls(const struct tls *t)
{
	if (t->head_n > 0 && (t->head[0] < 20 || t->head[0] > 23))
		return false;
	return t->head_n < 2 || t->head[1] == 3;
}

static const struct {
	int reason;
	enum tls_failure failure;
	const char *text;
} accounts[] = {
	{ SSL_R_UNSUPPORTED_PROTOCOL, TLS_FAIL_VERSION, "no common protocol version" },
	{ SSL_R_WRONG_SSL_VERSION, TLS_FAIL_VERSION, "no common protocol version" },
	{ SSL_R_NO_PROTOCOLS_AVAILABLE, TLS_FAIL_VERSION, "no common protocol version" },
	{ SSL_R_VERSION_TOO_LOW, TLS_FAIL_VERSION, "peer's protocol version is too low" },
	{ SSL_R_NO_SHARED_CIPHER, TLS_FAIL_CIPHER, "no cipher in common" },
	{ SSL_R_NO_CIPHERS_AVAILABLE, TLS_FAIL_CIPHER, "no cipher left to offer" },
	{ SSL_R_WRONG_CIPHER_RETURNED, TLS_FAIL_CIPHER, "peer chose a cipher that was not offered" },
	{ SSL_R_NO_APPLICATION_PROTOCOL, TLS_FAIL_ALPN, "peer offers no protocol but others than http/1.1" },
	{ SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC, TLS_FAIL_PROTOCOL, "a record failed its integrity check" },
};

int tls_fail_ssl(struct tls *t, int ssl_error)
{
	unsigned long e = ERR_peek_error();
	bool shaking = t->state == TLS_HANDSHAKE;
	char text[128];

	if (t->state == TLS_FAILED) {
		ERR_clear_error();
		return t->final;
	}
	if (shaking && t->ctx->verify && t->ssl && SSL_get_verify_result(t->ssl) != X509_V_OK) {
		ERR_clear_error();
		return fail_verdict(t, SSL_get_verify_result(t->ssl));
	}
	if (t->alert_in) {
		ERR_clear_error();
		return tls_fail_alert(t, (uint8_t)(t->alert_in - 1));
	}
	/* The very first thing was an alert; OpenSSL calls that a wrong version when it waits for a hello. */
	if (shaking && t->head_n >= 7 && t->head[0] == SSL3_RT_ALERT) {
		ERR_clear_error();
		return tls_fail_alert(t, t->head[6]);
	}
	if (shaking && !spoke_tls(t)) {
		ERR_clear_error();
		return tls_fail(t, -EPROTO, TLS_FAIL_PLAINTEXT, "peer does not speak TLS");
	}
	if (t->error) {
		ERR_clear_error();
		return tls_fail_socket(t, t->error);
	}
	if (t->eof && (ssl_error == SSL_ERROR_SYSCALL || ERR_GET_REASON(e) == SSL_R_UNEXPECTED_EOF_WHILE_READING)) {
		ERR_clear_error();
		return shaking ? tls_fail(t, -EPROTO, TLS_FAIL_CLOSED, "peer closed during the handshake")
			       : tls_fail(t, -ENODATA, TLS_FAIL_TRUNCATED, "stream ended without close_notify");
	}
	if (ERR_GET_REASON(e) == ERR_R_MALLOC_FAILURE) {
		ERR_clear_error();
		return tls_fail(t, -ENOMEM, TLS_FAIL_MEMORY, "out of memory");
	}
	for (size_t i = 0; i < ARRAY_SIZE(accounts); i++)
		if (ERR_GET_LIB(e) == ERR_LIB_SSL && ERR_GET_REASON(e) == accounts[i].reason) {
			ERR_clear_error();
			return tls_fail(t, -EPROTO, accounts[i].failure, "%s", accounts[i].text);
		}
	tls_error_text(text, sizeof(text));
	return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "TLS protocol error: %s", text);
}
