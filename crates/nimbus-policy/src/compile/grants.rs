//! Images and quotas.

use super::Compiler;
use crate::decision::{CallLimits, Charge, Image, Provenance, Scaling, TenantQuotas};
use crate::decode::Spanned;
use crate::problem::Code;
use crate::schema::{
    ImageBlock, IsolationMode, QuotasBlock, SandboxChargeBlock, TenantQuotasBlock, Workload,
    WorkloadKind,
};
use crate::text::shown;

/// Hexadecimal digits of a SHA-256.
const DIGEST: usize = 64;
/// Where images without a registry come from.
const DEFAULT_REGISTRY: &str = "docker.io";

impl Compiler<'_> {
    pub(super) fn image(&mut self, file: &ImageBlock, isolation: IsolationMode) -> Image {
        if let Some(required) = &file.digest_required
            && !required.value
        {
            self.problems
                .add(Code::BadImage, required.span, "digests cannot be waived")
                .help("remove the key, and name the image by its digest: a tag can be moved");
        }
        if let Some(local) = &file.allow_local_build
            && local.value
            && isolation == IsolationMode::Production
        {
            self.problems
                .add(
                    Code::BadImage,
                    local.span,
                    "local builds are not taken in production",
                )
                .help("push the image to a registry and name it by its digest");
        }
        let registries = file.allowed_registries.as_deref().unwrap_or_default();
        let allowed_registries = self.names(registries, "a registry");
        let reference = file
            .reference
            .as_ref()
            .and_then(|reference| self.reference(reference));
        if let (Some(reference), Some(written)) = (&reference, &file.reference) {
            let registry = registry(reference);
            if !allowed_registries.is_empty() && !allowed_registries.contains(registry) {
                let message =
                    format!("the image is from `{registry}`, which is not in `allowed_registries`");
                self.problems
                    .add(Code::BadImage, written.span, message)
                    .help("add the registry, or take the image from one that is listed");
            }
        }
        let signature = file.signature.as_ref().and_then(|signature| {
            let issuer = self.prose(&signature.issuer, "issuer");
            let subject = self.prose(&signature.subject, "subject");
            Some((issuer?, subject?))
        });
        let provenance = file.provenance.as_ref().and_then(|provenance| {
            let source_uri = match &provenance.source_uri {
                Some(uri) => self.prose(uri, "source_uri").map(Some),
                None => Some(None),
            };
            let predicates = provenance.predicates.as_deref().unwrap_or_default();
            let predicates = self.names(predicates, "a predicate");
            Some(Provenance {
                builder_id: self.prose(&provenance.builder_id, "builder_id")?,
                source_uri: source_uri?,
                predicates,
            })
        });
        Image {
            reference,
            allowed_registries,
            signature,
            provenance,
            sbom_required: file.sbom_required.unwrap_or(false),
            allow_local_build: file
                .allow_local_build
                .as_ref()
                .is_some_and(|local| local.value),
        }
    }

    fn reference(&mut self, reference: &Spanned<String>) -> Option<String> {
        let text = &reference.value;
        let digest = text.split_once("@sha256:");
        let good = |(name, digest): (&str, &str)| {
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'@' && byte != b'*')
                && digest.len() == DIGEST
                && digest.bytes().all(lower)
        };
        if digest.is_some_and(good) {
            return Some(text.clone());
        }
        let message = format!("`{}` does not name an image by its digest", shown(text));
        self.problems
            .add(Code::BadImage, reference.span, message)
            .help("write `registry/name@sha256:` and the 64 lower-case hexadecimal digits of the digest");
        None
    }

    pub(super) fn quotas(&mut self, quotas: Option<&QuotasBlock>) -> (Charge, Scaling) {
        let charge = quotas.and_then(|quotas| quotas.sandbox_charge.as_ref());
        let charge = charge.map(|charge| self.charge(charge)).unwrap_or_default();
        let scaling = quotas.and_then(|quotas| quotas.runtime_scaling.as_ref());
        let Some(scaling) = scaling else {
            return (charge, Scaling::default());
        };
        let max_warm = self.some(scaling.value.max_warm.as_ref(), "max_warm");
        let max_min_warm = self.some(scaling.value.max_min_warm.as_ref(), "max_min_warm");
        if max_min_warm > max_warm {
            self.problems
                .add(
                    Code::ScalingLimit,
                    scaling.span,
                    "`max_min_warm` is more than `max_warm`",
                )
                .help("raise the one or lower the other");
        }
        let allow_live_scaling = scaling.value.allow_live_scaling.unwrap_or(false);
        let scaling = Scaling {
            max_warm,
            max_min_warm,
            allow_live_scaling,
        };
        (charge, scaling)
    }

    pub(super) fn tenant_quotas(&mut self, file: &TenantQuotasBlock) -> TenantQuotas {
        let mut limit = |quota: &Option<Spanned<u64>>, key| {
            let help = "remove the key for no limit";
            self.not_zero(quota.as_ref(), key, help)
        };
        TenantQuotas {
            storage_bytes: limit(&file.storage_bytes, "storage_bytes"),
            documents: limit(&file.documents, "documents"),
            requests_per_second: limit(&file.requests_per_second, "requests_per_second"),
            active_functions: limit(&file.active_functions, "active_functions"),
        }
    }

    pub(super) fn function_call(&mut self, workload: &Workload) -> CallLimits {
        let quotas = workload.quotas.as_ref();
        let Some(file) = quotas.and_then(|quotas| quotas.function_call.as_ref()) else {
            return CallLimits::default();
        };
        if workload.kind != WorkloadKind::RuntimeFunction {
            let message = format!("a workload of the kind `{}` is not called", workload.kind);
            self.problems
                .add(Code::Misplaced, file.span, message)
                .help("remove the block, or make the workload a `runtime_function`");
        }
        let mut limit = |quota: &Option<Spanned<u64>>, key| {
            let help = "remove the key for no limit but the server's";
            self.not_zero(quota.as_ref(), key, help)
        };
        CallLimits {
            timeout_ms: limit(&file.value.timeout_ms, "timeout_ms"),
            user_cpu_ms: limit(&file.value.user_cpu_ms, "user_cpu_ms"),
            log_bytes: file.value.log_bytes.as_ref().map(|bytes| bytes.value),
        }
    }

    fn charge(&mut self, file: &SandboxChargeBlock) -> Charge {
        Charge {
            active_sandboxes: self.some(file.active_sandboxes.as_ref(), "active_sandboxes"),
            vcpus: self.some(file.vcpus.as_ref(), "vcpus"),
            memory_bytes: self.some(file.memory_bytes.as_ref(), "memory_bytes"),
            disk_bytes: self.some(file.disk_bytes.as_ref(), "disk_bytes"),
            log_bytes: file.log_bytes.as_ref().map(|bytes| bytes.value),
        }
    }

    fn some<T: Copy + Default + PartialEq>(
        &mut self,
        quota: Option<&Spanned<T>>,
        key: &str,
    ) -> Option<T> {
        let help = "remove the key: what is not given is not granted";
        self.not_zero(quota, key, help)
    }

    fn not_zero<T: Copy + Default + PartialEq>(
        &mut self,
        quota: Option<&Spanned<T>>,
        key: &str,
        help: &str,
    ) -> Option<T> {
        let quota = quota?;
        if quota.value == T::default() {
            self.problems
                .add(Code::ZeroQuota, quota.span, format!("`{key}` is zero"))
                .help(help);
        }
        Some(quota.value)
    }
}

/// The registry that an image comes from.
pub(crate) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => DEFAULT_REGISTRY,
    }
}
