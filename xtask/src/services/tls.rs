//! A certificate for the local services, and what both sides need to use it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::scratch::Scratch;
use crate::{command, packages, progress::Step};

/// A certificate for `localhost` and `127.0.0.1`, its key, and the authority that has signed it.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Makes them with the `openssl` command.
    pub(crate) fn make(step: &Step, scratch: &Scratch) -> Result<Self> {
        if command::which("openssl").is_none() {
            packages::install(&["openssl"], "certificates")?;
        }
        let folder = scratch.path();
        let openssl = |arguments: &str| {
            command::quiet(step, command::new("openssl").current_dir(folder).args(arguments.split(' ')))
        };
        openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=bench -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem",
        )?;
        let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n\
                          subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
        fs::write(folder.join("server.cnf"), extensions)
            .context("failed to write into the scratch folder")?;
        openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr")?;
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.cnf \
             -out server.pem",
        )?;
        let path = |name: &str| folder.join(name);
        Ok(Self { authority: path("ca.pem"), certificate: path("server.pem"), key: path("server.key") })
    }

    /// For clients that trust the authority.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.authority)?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    /// For servers that show the certificate.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>> {
        let key = PrivateKeyDer::from_pem_file(&self.key).context("openssl left an odd key")?;
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
        Ok(Arc::new(builder.with_single_cert(vec![certificate(&self.certificate)?], key)?))
    }
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).context("openssl left an odd certificate")
}
