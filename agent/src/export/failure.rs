//! What went wrong with a request ([`Failure`]), what that means ([`Cause`]), and the sentence that names the remedy.

use opentelemetry_sdk::error::OTelSdkError;

use super::probe::Speaks;
use crate::config::{OtlpConfig, Protocol, Signal};

/// What the client saw. Never holds a header or a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No answer of the protocol: refused, reset, not understood.
    Transport(String),
    /// No answer in time.
    Timeout,
    /// An HTTP status other than success.
    Http(u16),
    /// The gRPC status of this name (as `tonic::Code` spells it).
    Grpc(String),
    /// The receiver said in plain text that it wants TLS.
    PlainToTls,
    /// Something that was found before sending.
    Other(String),
}

impl Failure {
    /// Of an HTTP answer. TLS servers answer plain text with 400 and these words (Go's net/http, nginx).
    pub(super) fn status(status: u16, body: &str) -> Self {
        if status == 400 && (body.contains("HTTPS server") || body.contains("HTTPS port")) {
            Self::PlainToTls
        } else {
            Self::Http(status)
        }
    }

    /// Of the crate's error, which gives the gRPC code, and what its transport said, as text only.
    pub(super) fn from_crate(error: &OTelSdkError) -> Self {
        let OTelSdkError::InternalFailure(message) = error else { return Self::Other(error.to_string()) };
        let Some((_, status)) = message.split_once("gRPC code: ") else {
            return Self::Other(message.clone());
        };
        match status.split_once(": ") {
            // tonic's words for a request, and for a connection, that took too long.
            Some((_, detail))
                if detail.contains("Timeout expired") || detail.contains("deadline has elapsed") =>
            {
                Self::Timeout
            }
            // With a detail the status did not come from the receiver, but from tonic's transport.
            Some((_, detail)) => {
                Self::Transport(without_repeats(detail.trim_start_matches("transport error: ")))
            }
            None if status == "DeadlineExceeded" => Self::Timeout,
            None => Self::Grpc(status.to_owned()),
        }
    }

    /// Whether a look at how the receiver answers may tell more.
    pub(super) fn worth_a_probe(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Timeout => true,
            Self::Http(status) => matches!(status, 400 | 404 | 405 | 415 | 426 | 464 | 505),
            Self::Grpc(code) => matches!(code.as_str(), "Unknown" | "Internal" | "Unavailable" | "Cancelled"),
            Self::PlainToTls | Self::Other(_) => false,
        }
    }
}

/// A chain of errors, each of which was said once: several of tonic's repeat their source.
fn without_repeats(chain: &str) -> String {
    let mut errors: Vec<&str> = chain.split(": ").collect();
    errors.dedup();
    errors.join(": ")
}

/// What a failure means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nobody answers there.
    Unreachable(String),
    /// It answers too late.
    Slow,
    /// It speaks gRPC, and we HTTP/1.1.
    SpeaksGrpc,
    /// It speaks HTTP/1.1, and we gRPC.
    SpeaksHttp,
    /// It speaks TLS, and we do not.
    WantsTls,
    /// We speak TLS, and it does not.
    LacksTls,
    /// Its certificate is not trusted.
    Untrusted(String),
    /// It refuses our credentials.
    Refused(String),
    /// It has no such path.
    NoSuchPath,
    /// It does not take this signal.
    Unimplemented,
    /// The request was too large.
    TooLarge,
    /// Any other answer.
    Answered(String),
}

impl Cause {
    /// Draws the conclusion. `speaks` is what a probe found, if there was one.
    pub(super) fn of(failure: &Failure, speaks: Option<Speaks>, config: &OtlpConfig) -> Self {
        let encrypted = config.endpoint.scheme() == "https";
        if let Some(Speaks { http1, http2, tls }) = speaks {
            match config.protocol {
                _ if tls && !encrypted => return Self::WantsTls,
                _ if encrypted => {}
                Protocol::HttpProtobuf if http2 && !http1 => return Self::SpeaksGrpc,
                Protocol::Grpc if http1 && !http2 => return Self::SpeaksHttp,
                Protocol::HttpProtobuf | Protocol::Grpc => {}
            }
        }
        match failure {
            Failure::Transport(detail) if detail.contains("certificate") => Self::Untrusted(detail.clone()),
            // rustls, when what should be a TLS record begins otherwise.
            Failure::Transport(detail) if detail.contains("InvalidContentType") => Self::LacksTls,
            // The TLS server knows not the one protocol that we offer, HTTP/2 for gRPC and HTTP/1.1 else; or (in tonic's
            // words) it chose none.
            Failure::Transport(detail)
                if detail.contains("NoApplicationProtocol")
                    || detail.contains("HTTP/2 was not negotiated") =>
            {
                match config.protocol {
                    Protocol::Grpc => Self::SpeaksHttp,
                    Protocol::HttpProtobuf => Self::SpeaksGrpc,
                }
            }
            Failure::Transport(detail) => Self::Unreachable(detail.clone()),
            Failure::Timeout => Self::Slow,
            Failure::PlainToTls => Self::WantsTls,
            Failure::Http(status @ (401 | 403)) => Self::Refused(format!("HTTP {status}")),
            Failure::Http(404) => Self::NoSuchPath,
            Failure::Http(413) => Self::TooLarge,
            Failure::Http(status) => Self::Answered(format!("HTTP {status}")),
            Failure::Grpc(code) => match code.as_str() {
                "Unimplemented" => Self::Unimplemented,
                "Unauthenticated" | "PermissionDenied" => Self::Refused(format!("gRPC {code}")),
                "ResourceExhausted" => Self::TooLarge,
                _ => Self::Answered(format!("gRPC {code}")),
            },
            Failure::Other(detail) => Self::Answered(detail.clone()),
        }
    }

    /// Whether the receiver is one for other signals than this.
    pub(super) fn is_other_signals(&self) -> bool {
        matches!(self, Self::NoSuchPath | Self::Unimplemented)
    }

    /// What to tell the person who runs the agent: one sentence.
    pub(super) fn sentence(&self, config: &OtlpConfig) -> String {
        let place = config.place();
        let url = config.display_url();
        let variable = config.endpoint_variable.as_deref().unwrap_or("OTEL_EXPORTER_OTLP_ENDPOINT");
        let (signal, items) = (config.signal.path(), config.signal.items());
        match self {
            Self::Unreachable(detail) => {
                let hint = match (config.protocol, config.endpoint.port()) {
                    (Protocol::HttpProtobuf, Some(4317)) if !detail.contains("refused") => {
                        "; 4317 is usually a gRPC port: set OTEL_EXPORTER_OTLP_PROTOCOL to grpc, or use port 4318"
                            .to_owned()
                    }
                    _ => format!("; {items} are lost until it answers"),
                };
                format!("cannot export to {url}: {detail}{hint}")
            }
            Self::Slow => format!(
                "{place} does not answer within {} ms; {items} are lost until it does",
                config.timeout.as_millis()
            ),
            Self::SpeaksGrpc => format!(
                "{place} speaks gRPC, but OTEL_EXPORTER_OTLP_PROTOCOL is http/protobuf: set it to grpc, or use \
                 the receiver's HTTP port, by default 4318"
            ),
            Self::SpeaksHttp => format!(
                "{place} speaks HTTP/1.1, but OTEL_EXPORTER_OTLP_PROTOCOL is grpc: set it to http/protobuf, or use \
                 the receiver's gRPC port, by default 4317"
            ),
            Self::WantsTls => format!("{place} speaks TLS: begin {variable} with https://"),
            Self::LacksTls => format!("{place} does not speak TLS: begin {variable} with http://"),
            Self::Untrusted(detail) => format!(
                "the certificate of {place} is not accepted ({detail}): name the authority that signed it in \
                 OTEL_EXPORTER_OTLP_CERTIFICATE, and a host name that it holds in {variable}"
            ),
            Self::Refused(code) => {
                format!("{place} refuses our credentials ({code}): check OTEL_EXPORTER_OTLP_HEADERS")
            }
            Self::NoSuchPath if variable != "OTEL_EXPORTER_OTLP_ENDPOINT" => format!(
                "{url} does not exist (HTTP 404): {variable} is used as it is, and usually ends with /v1/{signal}"
            ),
            Self::NoSuchPath => format!(
                "{url} does not exist (HTTP 404): /v1/{signal} was appended to {variable}; name the whole URL in \
                 OTEL_EXPORTER_OTLP_{}_ENDPOINT if it is another",
                signal.to_uppercase()
            ),
            Self::Unimplemented => format!(
                "{place} takes no {signal} (gRPC UNIMPLEMENTED): enable its OTLP receiver for {signal}, or name \
                 another receiver in {variable}"
            ),
            Self::TooLarge => match config.signal {
                Signal::Traces => format!(
                    "{place} finds the requests too large or too many: lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
                ),
                Signal::Metrics => format!(
                    "{place} finds the requests too large or too many: raise OTEL_METRIC_EXPORT_INTERVAL"
                ),
                Signal::Profiles => {
                    format!("{place} finds the requests too large or too many: lower --profile-frequency")
                }
            },
            Self::Answered(answer) => format!("{place} takes no {items} from us: {answer}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    fn cause(variables: &[(&str, &str)], failure: &Failure, speaks: Option<Speaks>) -> (Cause, String) {
        let config = config(variables).unwrap().otlp;
        let cause = Cause::of(failure, speaks, &config);
        let sentence = cause.sentence(&config);
        (cause, sentence)
    }

    #[test]
    fn the_crates_text_becomes_a_failure() {
        let check = |text: &str, expected: Failure| {
            let text = format!("TonicTracesClient export failed with gRPC code: {text}");
            assert_eq!(Failure::from_crate(&OTelSdkError::InternalFailure(text)), expected);
        };
        check("Unimplemented", Failure::Grpc("Unimplemented".into()));
        check(
            "Unavailable: transport error: tcp connect error: tcp connect error: Connection refused (os error 111)",
            Failure::Transport("tcp connect error: Connection refused (os error 111)".into()),
        );
        check("Cancelled: Timeout expired", Failure::Timeout);
        check("DeadlineExceeded", Failure::Timeout);
    }

    #[test]
    fn sentences_name_the_remedy() {
        let http = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hunter2@127.0.0.1:4317?key=hunter2");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let check = |variables: &[(&str, &str)], failure, speaks, parts: &[&str]| {
            let (_, sentence) = cause(variables, &failure, speaks);
            for part in parts {
                assert!(sentence.contains(part), "`{sentence}` does not say `{part}`");
            }
            assert!(!sentence.contains("hunter2"), "{sentence}");
        };
        let reset = || Failure::Transport("connection reset".into());
        let only = |http1, http2, tls| Some(Speaks { http1, http2, tls });
        check(&[http], reset(), only(false, true, false), &["127.0.0.1:4317 speaks gRPC", "set it to grpc"]);
        check(&[http], reset(), only(true, true, false), &["connection reset", "4318"]);
        check(&[http, grpc], reset(), only(true, false, false), &["speaks HTTP/1.1", "http/protobuf"]);
        check(&[http, grpc], reset(), only(false, false, true), &["speaks TLS", "https://"]);
        check(&[http], Failure::Http(401), None, &["HTTP 401", "OTEL_EXPORTER_OTLP_HEADERS"]);
        check(&[http], Failure::Http(404), None, &["/v1/traces was appended"]);
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318/");
        check(&[traces], Failure::Http(404), None, &["usually ends with /v1/traces"]);
        check(&[http, grpc], Failure::Grpc("Unimplemented".into()), None, &["takes no traces"]);
        check(&[http], Failure::Timeout, None, &["10000 ms"]);
        let untrusted = Failure::Transport("invalid peer certificate: UnknownIssuer".into());
        check(&[http], untrusted, None, &["OTEL_EXPORTER_OTLP_CERTIFICATE", "UnknownIssuer"]);
    }

    #[test]
    fn a_tls_servers_plain_answer_is_recognised() {
        let go = "Client sent an HTTP request to an HTTPS server.\n";
        assert_eq!(Failure::status(400, go), Failure::PlainToTls);
        assert_eq!(Failure::status(400, ""), Failure::Http(400));
    }
}
