//! The provider `aws-kms`: AWS KMS makes, opens and re-encrypts the keys (feature `aws-kms`).
//!
//! Three operations and no more: GenerateDataKey, Decrypt, ReEncrypt. Must not know manifests.
//! What is done with the answers is here; what may go wrong on the way is in `answer`.
//!
//! A key that KMS made is wrapped by KMS itself. A key that exists already, such as one that comes
//! from another provider, is sealed with AES-256-GCM-SIV under a fresh data key, and KMS wraps that:
//! so the right to `kms:Encrypt` is never needed.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use tokio::time::timeout;

use self::answer::Answer;
use super::{KeyError, KeyFuture, KeyProvider, KmsFault, WrappedKey, wrap};
use crate::context::{FileId, KeyContext, KeyRole, MANIFEST_VERSION};
use crate::key::{Dek, WrappingKey};
use crate::subject::Subject;

mod answer;

/// How KMS wraps a key that it made: with the one algorithm of its symmetric keys.
const DIRECT: &str = "aws-kms-symmetric-default";
/// How a key that existed already is wrapped: sealed under a data key that KMS wraps.
const UNDER_DATA_KEY: &str = "aws-kms-data-key-aes-256-gcm-siv";
/// Both, for an error.
const KNOWN: &str = "aws-kms-symmetric-default or aws-kms-data-key-aes-256-gcm-siv";
/// Sets the associated data of a key under a data key apart from all others.
const LABEL: &str = "nimbus-enc key under data key";

/// Longest time for a connection, TLS included.
const CONNECT: Duration = Duration::from_millis(500);
/// Longest time for one attempt.
const ATTEMPT: Duration = Duration::from_millis(1_000);
/// Longest time for an operation with all its attempts: opening a file takes one, or two at the same
/// time, and fails closed within 2 s.
const OPERATION: Duration = Duration::from_millis(1_500);
/// Attempts for one operation.
const ATTEMPTS: u32 = 3;
/// Wait before the second attempt, at most; it doubles.
const BACKOFF: Duration = Duration::from_millis(50);
/// Longest time to find the region, or credentials: both may ask the metadata service of a machine.
const CHAIN: Duration = Duration::from_secs(5);

/// Which key, and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsKmsOptions {
    /// Key id, ARN, `alias/NAME` or the ARN of an alias, of a symmetric encryption key.
    pub key_id: String,
    /// The region; from the standard chain (`AWS_REGION`, profile, machine) when `None`.
    pub region: Option<String>,
    /// In place of the region's endpoint: a VPC endpoint, or an emulator.
    pub endpoint_url: Option<String>,
}

/// The provider `aws-kms`.
///
/// Credentials come from the standard chain: environment, profile, web identity, container, machine.
/// KMS binds each key to its encryption context: manifest version, subject and file id, which CloudTrail
/// records. Calls need a tokio runtime with time and I/O.
///
/// What is wiped: keys, and the buffer in which the SDK hands them over. What is not: the buffers of
/// HTTP and TLS that an answer passed through, which the SDK owns.
pub struct AwsKms {
    client: Client,
    key_id: String,
    /// Region and endpoint: for errors, and to tell whether two providers reach one service.
    service: String,
    /// The ARN behind `key_id`, once KMS named it.
    arn: OnceLock<String>,
}

/// The client's own text is a page long.
impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AwsKms({} in {})", self.key_id, self.service)
    }
}

impl AwsKms {
    /// The provider's name.
    pub const NAME: &'static str = "aws-kms";

    /// Finds region and credentials, and prepares the client. KMS is not called:
    /// [`KeyProvider::key_id`] does that, and shows whether the key is usable.
    ///
    /// Connections belong to the runtime that they were made on: call the provider on one that lives
    /// as long as it does.
    ///
    /// # Errors
    /// [`KmsFault::NoRegion`], [`KmsFault::NoCredentials`].
    pub async fn connect(options: AwsKmsOptions) -> Result<Self, KmsFault> {
        let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        Self::connect_by(loader, limits(), options).await
    }

    /// With a loader that knows where credentials come from, and with limits of time.
    async fn connect_by(
        mut loader: ConfigLoader,
        limits: TimeoutConfig,
        options: AwsKmsOptions,
    ) -> Result<Self, KmsFault> {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::rustls(CryptoMode::AwsLc))
            .build_https();
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS)
            .with_initial_backoff(BACKOFF);
        loader = loader
            .http_client(http)
            .timeout_config(limits)
            .retry_config(retries);
        if let Some(region) = options.region {
            loader = loader.region(Region::new(region));
        }
        if let Some(url) = &options.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let loaded = timeout(CHAIN, loader.load()).await;
        let config = loaded.map_err(|_| KmsFault::NoRegion)?;
        let region = config.region().ok_or(KmsFault::NoRegion)?;
        check_credentials(&config).await?;
        let service = match config.endpoint_url() {
            Some(url) => format!("{region} at {url}"),
            None => region.to_string(),
        };
        Ok(Self {
            client: Client::new(&config),
            key_id: options.key_id,
            service,
            arn: OnceLock::new(),
        })
    }

    /// A new key, by KMS under its own.
    async fn data_key(&self, context: &KeyContext) -> Result<DataKey, KmsFault> {
        let answer = Answer::to(self, "GenerateDataKey", &self.key_id);
        let sent = self
            .client
            .generate_data_key()
            .key_id(&self.key_id)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(encryption_context(context)))
            .send()
            .await;
        let found = answer.of(sent)?;
        Ok(DataKey {
            key: answer.key(found.plaintext)?,
            blob: answer.blob(found.ciphertext_blob)?,
            arn: answer.arn(found.key_id)?,
        })
    }

    /// Opens what KMS wrapped. The configured key is named, so that a manifest cannot choose one.
    async fn decrypt(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        blob: &[u8],
    ) -> Result<Dek, KmsFault> {
        let answer = Answer::to(self, "Decrypt", &wrapped.key_id);
        let sent = self
            .client
            .decrypt()
            .key_id(&self.key_id)
            .ciphertext_blob(Blob::new(blob))
            .set_encryption_context(Some(encryption_context(context)))
            .send()
            .await;
        let found = answer.of(sent)?;
        let arn = answer.arn(found.key_id)?;
        if !answer::same_key(&arn, &wrapped.key_id) {
            return Err(KmsFault::WrongKey {
                expected: arn,
                found: wrapped.key_id.clone(),
            });
        }
        answer.key(found.plaintext)
    }

    /// Brings what another key of this service wrapped under this one, without seeing what it is.
    async fn re_encrypt(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        blob: &[u8],
    ) -> Result<(String, Vec<u8>), KmsFault> {
        let answer = Answer::to(self, "ReEncrypt", &self.key_id);
        let bound = encryption_context(context);
        let sent = self
            .client
            .re_encrypt()
            .source_key_id(&wrapped.key_id)
            .destination_key_id(&self.key_id)
            .ciphertext_blob(Blob::new(blob))
            .set_source_encryption_context(Some(bound.clone()))
            .set_destination_encryption_context(Some(bound))
            .send()
            .await;
        let found = answer.of(sent)?;
        Ok((
            answer.arn(found.key_id)?,
            answer.blob(found.ciphertext_blob)?,
        ))
    }

    fn wrapped(arn: String, algorithm: &str, bytes: Vec<u8>) -> WrappedKey {
        WrappedKey {
            provider: Self::NAME.to_owned(),
            key_id: arn,
            algorithm: algorithm.to_owned(),
            bytes,
        }
    }
}

fn limits() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .operation_attempt_timeout(ATTEMPT)
        .operation_timeout(OPERATION)
        .build()
}

/// Asks the chain once, at the start: later, a chain that does not answer looks like a service that does
/// not.
async fn check_credentials(config: &SdkConfig) -> Result<(), KmsFault> {
    let missing = |detail| KmsFault::NoCredentials { detail };
    let Some(chain) = config.credentials_provider() else {
        return Err(missing("the chain is empty".to_owned()));
    };
    match timeout(CHAIN, chain.provide_credentials()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(missing(answer::chain(&error))),
        Err(_) => Err(missing(format!("no answer within {} s", CHAIN.as_secs()))),
    }
}

/// A key and how KMS wraps it.
struct DataKey {
    key: Dek,
    blob: Vec<u8>,
    arn: String,
}

/// What never changes in a file's life without a call of KMS.
fn encryption_context(context: &KeyContext) -> HashMap<String, String> {
    HashMap::from([
        ("nimbus:version".to_owned(), MANIFEST_VERSION.to_string()),
        ("nimbus:subject".to_owned(), context.subject.to_string()),
        ("nimbus:file-id".to_owned(), context.file_id.to_string()),
    ])
}

/// The same fields for what is sealed under a data key. The wrapped data key is not among them, since
/// ReEncrypt changes it; no other data key opens this.
fn associated(context: &KeyContext) -> Vec<u8> {
    let mut fields = crate::context::Fields(Vec::with_capacity(256));
    fields.text(LABEL);
    fields.bytes(&MANIFEST_VERSION.to_be_bytes());
    fields.text(context.subject.descriptor());
    fields.bytes(context.file_id.as_bytes());
    fields.0
}

/// The two parts of a wrapped key: what KMS wrapped, and what is sealed under that if anything is.
struct Parts<'a> {
    blob: &'a [u8],
    sealed: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(context: &KeyContext, wrapped: &'a WrappedKey) -> Result<Self, KeyError> {
        wrap::check_provider(AwsKms::NAME, context, wrapped)?;
        match wrapped.algorithm.as_str() {
            DIRECT => Ok(Self {
                blob: &wrapped.bytes,
                sealed: None,
            }),
            UNDER_DATA_KEY => Self::split(&wrapped.bytes).ok_or_else(|| KeyError::WrappedSize {
                subject: context.subject.to_string(),
                expected: wrap::WRAPPED_BYTES,
                found: wrapped.bytes.len(),
            }),
            _ => Err(KeyError::Algorithm {
                subject: context.subject.to_string(),
                expected: KNOWN,
                found: wrapped.algorithm.clone(),
            }),
        }
    }

    fn split(bytes: &'a [u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (blob, sealed) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        (sealed.len() == wrap::WRAPPED_BYTES).then_some(Self {
            blob,
            sealed: Some(sealed),
        })
    }

    /// `blob` is at most [`answer::MAX_BLOB`] long.
    fn joined(blob: &[u8], sealed: &[u8]) -> Vec<u8> {
        let length = u16::try_from(blob.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes()[..], blob, sealed].concat()
    }
}

/// Adds the subject to what went wrong.
fn failed(subject: &Subject) -> impl Fn(KmsFault) -> KeyError {
    move |fault| KeyError::Kms {
        subject: subject.to_string(),
        fault,
    }
}

impl KeyProvider for AwsKms {
    fn name(&self) -> &str {
        Self::NAME
    }

    /// The ARN of the key. KMS is asked for a data key once, since an alias does not say which key
    /// it stands for, and the right to describe keys is not needed otherwise.
    fn key_id<'a>(&'a self, subject: &'a Subject) -> KeyFuture<'a, String> {
        Box::pin(async move {
            if let Some(arn) = self.arn.get() {
                return Ok(arn.clone());
            }
            let probe = KeyContext {
                subject: subject.clone(),
                file_id: FileId::from_bytes([0; 16]),
                cipher: subject.cipher(),
                created_at: 0,
                role: KeyRole::Current,
            };
            let found = self.data_key(&probe).await.map_err(failed(subject))?;
            Ok(self.arn.get_or_init(|| found.arn).clone())
        })
    }

    fn generate_key<'a>(&'a self, context: &'a KeyContext) -> KeyFuture<'a, (Dek, WrappedKey)> {
        Box::pin(async move {
            let made = self.data_key(context).await;
            let made = made.map_err(failed(&context.subject))?;
            Ok((made.key, Self::wrapped(made.arn, DIRECT, made.blob)))
        })
    }

    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move {
            let made = self.data_key(context).await;
            let made = made.map_err(failed(&context.subject))?;
            let key = WrappingKey::from_bytes(made.key.expose_secret());
            let sealed = wrap::seal_under(&key, &associated(context), context, dek)?;
            let bytes = Parts::joined(&made.blob, &sealed);
            Ok(Self::wrapped(made.arn, UNDER_DATA_KEY, bytes))
        })
    }

    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek> {
        Box::pin(async move {
            let parts = Parts::of(context, wrapped)?;
            let opened = self.decrypt(context, wrapped, parts.blob).await;
            let opened = opened.map_err(failed(&context.subject))?;
            let Some(sealed) = parts.sealed else {
                return Ok(opened);
            };
            let key = WrappingKey::from_bytes(opened.expose_secret());
            wrap::open_under(&key, &associated(context), context, sealed)
        })
    }

    /// KMS does not bind the role, which the manifest's tag covers.
    fn change_role<'a>(
        &'a self,
        _to: &'a KeyContext,
        wrapped: &'a WrappedKey,
        _dek: &'a Dek,
    ) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move { Ok(wrapped.clone()) })
    }

    fn service(&self) -> Option<&str> {
        Some(&self.service)
    }

    fn rewrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
        _dek: &'a Dek,
    ) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move {
            let parts = Parts::of(context, wrapped)?;
            let moved = self.re_encrypt(context, wrapped, parts.blob).await;
            let (arn, blob) = moved.map_err(failed(&context.subject))?;
            let bytes = match parts.sealed {
                Some(sealed) => Parts::joined(&blob, sealed),
                None => blob,
            };
            Ok(Self::wrapped(arn, &wrapped.algorithm, bytes))
        })
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vector_tests;
