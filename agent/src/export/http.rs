//! The HTTP client of OTLP over HTTP: one connection pool for all services, and what went wrong last for each.
//!
//! opentelemetry-otlp says only "network error" or a status code; an [`HttpSender`] keeps the rest for the diagnosis.
//! It also sets the headers itself, because the crate would decode them a second time.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, ResponseBodyTooLarge};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::failure::Failure;

/// An OTLP answer is a few bytes; a larger one comes from something else.
const LARGEST_ANSWER: usize = 1 << 20;

/// Sends the requests of one exporter. Clones share the failure.
#[derive(Clone, Debug)]
pub(super) struct HttpSender {
    client: reqwest::Client,
    headers: Arc<[(HeaderName, HeaderValue)]>,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl HttpSender {
    pub(super) fn new(client: reqwest::Client, headers: Arc<[(HeaderName, HeaderValue)]>) -> Self {
        Self { client, headers, failure: Arc::default() }
    }

    /// What went wrong with the last request that went wrong.
    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn send(
        &self,
        request: Request<Bytes>,
    ) -> Result<(Response<Bytes>, Option<Failure>), reqwest::Error> {
        let (parts, body) = request.into_parts();
        let mut headers: HeaderMap = parts.headers;
        for (name, value) in self.headers.iter() {
            headers.insert(name, value.clone());
        }
        let request = self.client.request(parts.method, parts.uri.to_string()).headers(headers).body(body);
        let mut response = request.send().await?;
        let mut answer = Vec::new();
        let mut fits = true;
        while let Some(chunk) = response.chunk().await? {
            fits &= answer.len() + chunk.len() <= LARGEST_ANSWER;
            if !fits {
                break;
            }
            answer.extend_from_slice(&chunk);
        }
        let status = response.status();
        let failure = if !status.is_success() {
            Some(Failure::status(status.as_u16(), &String::from_utf8_lossy(&answer)))
        } else if !fits {
            Some(Failure::Other("the answer is larger than any of OTLP".to_owned()))
        } else {
            None
        };
        let mut result = Response::new(Bytes::from(answer));
        *result.status_mut() = status;
        *result.headers_mut() = std::mem::take(response.headers_mut());
        Ok((result, failure))
    }
}

#[async_trait]
impl HttpClient for HttpSender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = self.send(request).await;
        let (failure, result) = match result {
            Ok((_, Some(failure @ Failure::Other(_)))) => {
                (Some(failure), Err(ResponseBodyTooLarge::new().into()))
            }
            Ok((response, failure)) => (failure, Ok(response)),
            Err(error) if error.is_timeout() => (Some(Failure::Timeout), Err(error.without_url().into())),
            // The URL may hold a key.
            Err(error) => {
                let error = error.without_url();
                (Some(Failure::Transport(innermost(&error))), Err(error.into()))
            }
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        result
    }
}

/// The error at the end of the chain, which says what happened; those before it say where.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        innermost = error.to_string();
        next = error.source();
    }
    innermost
}
