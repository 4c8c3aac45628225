//! Everything over TLS: certificates made by the `openssl` command, back ends that want TLS, and what clients need to trust them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::lab::Lab;
use crate::packages;
use crate::postgres::Postgres;
use crate::process::{Tree, free_port};
use crate::python::run;
use crate::redis::Redis;
use crate::service;

/// A certificate for `localhost` and `127.0.0.1`, its key, and the authority that has signed it.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's key.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in a directory.
    pub fn make(directory: &Path) -> Result<Self> {
        packages::ensure_debian(&["openssl"], || Path::new("/usr/bin/openssl").exists())?;
        let path = |name: &str| directory.join(name);
        let openssl =
            |arguments: &[&str]| run(Command::new("/usr/bin/openssl").current_dir(directory).args(arguments));
        let fresh_key = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        openssl(
            &[
                &fresh_key[..],
                &[
                    "-subj",
                    "/CN=pitviper tests",
                    "-addext",
                    "keyUsage=critical,keyCertSign,cRLSign",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                ],
            ]
            .concat(),
        )?;
        fs::write(
            path("server.cnf"),
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
        )?;
        let request = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"];
        openssl(&[&request[..], &["-keyout", "server.key", "-out", "server.csr"]].concat())?;
        let sign =
            ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(&[&sign[..], &["-days", "2", "-extfile", "server.cnf", "-out", "server.pem"]].concat())?;
        Ok(Self { authority: path("ca.pem"), certificate: path("server.pem"), key: path("server.key") })
    }

    /// Copies them to the same paths below another root; gives the directory, which is the caller's to remove.
    pub fn copy_below(&self, root: &Path) -> Result<PathBuf> {
        let Self { authority, certificate, key } = self;
        let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let directory = below(authority.parent().context("no directory")?);
        fs::create_dir_all(&directory)?;
        for path in [authority, certificate, key] {
            fs::copy(path, below(path))?;
        }
        Ok(directory)
    }

    /// For servers that show the certificate.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let certificate = CertificateDer::from_pem_file(&self.certificate).context("odd certificate")?;
        let key = PrivateKeyDer::from_pem_file(&self.key).context("odd key")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate], key)?))
    }

    /// For clients that trust the authority.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.authority).context("odd certificate")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }
}

/// Back ends that speak TLS only to those who ask for it (PostgreSQL), or to all (Redis, the upstream).
pub struct Encrypted {
    /// What they show.
    pub certificates: Certificates,
    postgres: Postgres,
    redis: Redis,
    _upstream: Tree,
    upstream_port: u16,
}

impl Encrypted {
    /// Starts them.
    pub fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("tls");
        fs::create_dir_all(&directory)?;
        let certificates = Certificates::make(&directory)?;
        let upstream_port = free_port()?;
        let mut command = Command::new(&lab.python().executable);
        command.arg(service::apps().join("upstream.py")).arg(upstream_port.to_string());
        command.arg(&certificates.certificate).arg(&certificates.key);
        let mut upstream = Tree::spawn("upstream", command, &directory.join("upstream.log"))?;
        let postgres = Postgres::start_with(&directory, Some(&certificates))?;
        let redis = Redis::start_with(&directory, Some(&certificates))?;
        upstream.wait_for_port(upstream_port)?;
        Ok(Self { certificates, postgres, redis, _upstream: upstream, upstream_port })
    }

    /// The environment variables that tell a service where its back ends are, and whom to trust.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let authority = self.certificates.authority.display().to_string();
        vec![
            ("TEST_POSTGRES", format!("{}?sslmode=require", self.postgres.url())),
            ("TEST_REDIS", format!("{}?ssl_ca_certs={authority}", self.redis.url())),
            ("TEST_UPSTREAM", format!("https://127.0.0.1:{}", self.upstream_port)),
            ("TEST_CA", authority.clone()),
            ("SSL_CERT_FILE", authority.clone()),
            ("REQUESTS_CA_BUNDLE", authority),
        ]
    }

    /// Ports of PostgreSQL, Redis and the upstream.
    pub fn ports(&self) -> [u16; 3] {
        [self.postgres.port(), self.redis.port(), self.upstream_port]
    }
}
