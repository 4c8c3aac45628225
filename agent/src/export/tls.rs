//! The PEM files of `OTEL_EXPORTER_OTLP_{CERTIFICATE,CLIENT_CERTIFICATE,CLIENT_KEY}`, as both transports want them.
//!
//! With CERTIFICATE the receiver's certificate must come from one of the authorities in that file, as in the other
//! SDKs; without it, from one of the system's. The cryptography is ring's.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use tonic::transport::ClientTlsConfig;

use crate::config::TlsFiles;

/// The contents of the files.
#[derive(Default)]
pub(super) struct Pem {
    authorities: Option<Vec<u8>>,
    client: Option<ClientPem>,
}

struct ClientPem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pem {
    /// Reads the files that are named.
    pub(super) fn read(files: &TlsFiles) -> anyhow::Result<Self> {
        let TlsFiles { certificate, client } = files;
        let authorities =
            certificate.as_deref().map(|path| read(path, "OTEL_EXPORTER_OTLP_CERTIFICATE", "CERTIFICATE"));
        let client = client.as_ref().map(|client| {
            anyhow::Ok(ClientPem {
                certificate: read(
                    &client.certificate,
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                    "CERTIFICATE",
                )?,
                key: read(&client.key, "OTEL_EXPORTER_OTLP_CLIENT_KEY", "PRIVATE KEY")?,
            })
        });
        Ok(Self { authorities: authorities.transpose()?, client: client.transpose()? })
    }

    /// For gRPC.
    pub(super) fn tonic(&self) -> ClientTlsConfig {
        let config = match &self.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(tonic::transport::Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.client {
            Some(ClientPem { certificate, key }) => {
                config.identity(tonic::transport::Identity::from_pem(certificate, key))
            }
            None => config,
        }
    }

    /// For HTTP.
    pub(super) fn reqwest(
        &self,
        mut builder: reqwest::ClientBuilder,
    ) -> anyhow::Result<reqwest::ClientBuilder> {
        if let Some(pem) = &self.authorities {
            let certificates = reqwest::Certificate::from_pem_bundle(pem)
                .context("OTEL_EXPORTER_OTLP_CERTIFICATE holds a certificate that cannot be parsed")?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(ClientPem { certificate, key }) = &self.client {
            let pem = [certificate.as_slice(), b"\n", key].concat();
            let identity = reqwest::Identity::from_pem(&pem)
                .context("OTEL_EXPORTER_OTLP_CLIENT_KEY and _CLIENT_CERTIFICATE cannot be parsed")?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }
}

/// Reads a PEM file, and makes sure that it has a section whose label ends with `label`.
fn read(path: &Path, variable: &str, label: &str) -> anyhow::Result<Vec<u8>> {
    let pem = fs::read(path).with_context(|| format!("failed to read {} ({variable})", path.display()))?;
    let end = format!("{label}-----");
    let labelled = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&end);
    if !String::from_utf8_lossy(&pem).lines().any(labelled) {
        bail!("{} ({variable}) holds no PEM {}", path.display(), label.to_lowercase());
    }
    Ok(pem)
}

/// Makes ring the cryptography of this process, unless another was chosen before.
pub(super) fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
