//! Tests of rotation: every kind of file, what is refused before anything is changed, and `kill -9`
//! at every step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::*;
use crate::context::KeyContext;
use crate::key::{Dek, WrappingKey};
use crate::provider::{KeyDir, KeyError, KeyFuture, MasterKeyFile, WrappedKey};
use crate::subject::Subject;

const CREATED: u64 = 1_790_000_000;

fn master(byte: u8) -> MasterKeyFile {
    MasterKeyFile::new(WrappingKey::from_bytes(&[byte; 32]))
}

fn subjects() -> Vec<(&'static str, Subject)> {
    vec![
        ("a.sqlite3", Subject::sqlite_tenant("a").unwrap()),
        ("b.redb", Subject::redb_tenant("b").unwrap()),
        ("c.sqlite3", Subject::sqlite_tenant("c").unwrap()),
        // A migrated copy keeps the subject of the file that it will replace.
        ("c.sqlite3.encrypted", Subject::sqlite_tenant("c").unwrap()),
        (
            "d/tenant.sqlite3",
            Subject::libsql_cache("d", "tenant.sqlite3").unwrap(),
        ),
        (
            "e/tenant.sqlite3",
            Subject::libsql_cache("e", "tenant.sqlite3").unwrap(),
        ),
        ("nimbus-control.db", Subject::control()),
    ]
}

/// A directory with a manifest of each kind under master key 1; one of them has a pending key.
struct Fleet {
    dir: TempDir,
    keys: BTreeMap<PathBuf, (Dek, Option<Dek>)>,
}

impl Fleet {
    async fn new() -> Fleet {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = BTreeMap::new();
        for (name, subject) in subjects() {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let made = Manifest::create(&master(1), subject.clone(), CREATED).await;
            let (manifest, dek) = made.unwrap();
            manifest.write_new(&file).unwrap();
            let mut pending = None;
            if name == "c.sqlite3" {
                let begun = manifest.begin_rotation(&master(1), &subject).await.unwrap();
                begun.0.replace(&file).unwrap();
                pending = begun.1.pending;
            }
            keys.insert(file, (dek, pending));
        }
        Fleet { dir, keys }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Files that have the keys they had, by who opens their manifest.
    async fn under(&self, provider: &dyn KeyProvider) -> Vec<PathBuf> {
        let mut opened = Vec::new();
        for (file, (dek, pending)) in &self.keys {
            let manifest = Manifest::find(file).unwrap().unwrap();
            if let Ok(keys) = manifest.unlock(provider, manifest.subject()).await {
                assert!(keys.current == *dek && keys.pending == *pending);
                opened.push(file.clone());
            }
        }
        opened
    }

    fn files(&self) -> Vec<PathBuf> {
        self.keys.keys().cloned().collect()
    }

    /// Every file below the directory with its content.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut content = BTreeMap::new();
        for dir in [self.path(), &self.path().join("d"), &self.path().join("e")] {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    content.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        content
    }
}

async fn planned(rotation: &KekRotation<'_>, dir: &Path) -> Result<RotationPlan, RotationError> {
    rotation.plan_directory(dir, &mut |_| ()).await
}

fn unusable(outcome: Result<RotationPlan, RotationError>) -> Vec<RotationFailure> {
    match outcome {
        Err(RotationError::Unusable(failures)) => failures,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn all_manifests_of_a_directory_are_rotated_once() {
    let fleet = Fleet::new().await;
    let (old, new) = (master(1), master(2));
    let rotation = KekRotation::new(&old, &new);
    let mut seen = Vec::new();
    let mut saw = |at| seen.push(at);
    let plan = rotation
        .plan_directory(fleet.path(), &mut saw)
        .await
        .unwrap();
    assert_eq!(plan.due(), fleet.files());
    assert!(plan.already().is_empty());
    assert_eq!(seen, [RotationProgress::Planned { done: 7, total: 7 }]);

    seen.clear();
    let report = rotation.apply(plan, &mut |at| seen.push(at)).await.unwrap();
    assert!(report.is_complete() && report.already.is_empty());
    assert_eq!(report.rotated, fleet.files());
    let done = |done| RotationProgress::Rotated { done, total: 7 };
    assert_eq!(seen, [done(3), done(6), done(7)]);
    assert_eq!(fleet.under(&new).await, fleet.files());
    assert!(fleet.under(&old).await.is_empty());
    for path in fleet.content().keys() {
        assert!(path.to_str().unwrap().ends_with(".nimbus-enc"));
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
    }

    let before = fleet.content();
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    assert_eq!((plan.due().len(), plan.already()), (0, &*fleet.files()));
    let report = rotation.apply(plan, &mut |_| ()).await.unwrap();
    assert!(report.is_complete() && report.rotated.is_empty());
    assert_eq!(report.already, fleet.files());
    assert_eq!(fleet.content(), before);
}

#[tokio::test]
async fn planning_changes_nothing() {
    let fleet = Fleet::new().await;
    fs::write(fleet.path().join("a.sqlite3.nimbus-enc.tmp"), "left").unwrap();
    let before = fleet.content();
    let (old, new) = (master(1), master(2));
    planned(&KekRotation::new(&old, &new), fleet.path())
        .await
        .unwrap();
    assert_eq!(fleet.content(), before);
}

#[tokio::test]
async fn everything_unusable_is_listed_before_anything_is_changed() {
    let fleet = Fleet::new().await;
    let (old, new) = (master(1), master(2));
    let manifest = |name: &str| fleet.path().join(format!("{name}.nimbus-enc"));
    let stranger = master(9);
    let foreign = Manifest::create(&stranger, Subject::redb_tenant("b").unwrap(), CREATED);
    foreign
        .await
        .unwrap()
        .0
        .replace(&fleet.path().join("b.redb"))
        .unwrap();
    let text = fs::read_to_string(manifest("a.sqlite3")).unwrap();
    fs::write(
        manifest("a.sqlite3"),
        text.replace("1790000000", "1790000001"),
    )
    .unwrap();
    fs::write(manifest("d/tenant.sqlite3"), "{}").unwrap();
    symlink(manifest("nimbus-control.db"), manifest("link.db")).unwrap();
    fs::create_dir(manifest("directory.db")).unwrap();
    let before = fleet.content();
    let error = planned(&KekRotation::new(&old, &new), fleet.path())
        .await
        .unwrap_err();
    let text = error.to_string();
    let mut files: Vec<_> = unusable(Err(error))
        .into_iter()
        .map(|one| one.file)
        .collect();
    files.sort();
    let expected = [
        "a.sqlite3",
        "b.redb",
        "d/tenant.sqlite3",
        "directory.db",
        "link.db",
    ];
    assert_eq!(files, expected.map(|name| fleet.path().join(name)));
    assert!(
        text.starts_with("5 manifests cannot be rotated, and nothing was changed:\n"),
        "{text}"
    );
    assert!(expected.iter().all(|name| text.contains(name)), "{text}");
    assert_eq!(fleet.content(), before);
}

fn put_key(dir: &Path, subject: &Subject) {
    let path = dir.join(subject.key_file_name().unwrap());
    fs::write(&path, [5; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
}

#[tokio::test]
async fn every_key_file_is_checked_before_moving_onto_a_key_directory() {
    let fleet = Fleet::new().await;
    let keys = tempfile::tempdir().unwrap();
    let (old, new) = (master(1), KeyDir::open(keys.path()).unwrap());
    let rotation = KekRotation::new(&old, &new);
    let before = fleet.content();
    for (_, subject) in &subjects()[..4] {
        let _ = fs::remove_file(keys.path().join(subject.key_file_name().unwrap()));
        put_key(keys.path(), subject);
    }
    let long = Subject::sqlite_tenant(&"a".repeat(50)).unwrap();
    let file = fleet.path().join("long.sqlite3");
    let made = Manifest::create(&old, long, CREATED).await.unwrap();
    made.0.write_new(&file).unwrap();
    let failures = unusable(planned(&rotation, fleet.path()).await);
    assert_eq!(failures.len(), 4);
    let missing =
        |one: &&RotationFailure| matches!(one.error, ManifestError::Key(KeyError::KeyFile(_)));
    let named =
        |one: &&RotationFailure| matches!(one.error, ManifestError::Key(KeyError::Subject(_)));
    assert_eq!(failures.iter().filter(missing).count(), 3);
    assert_eq!(failures.iter().find(named).unwrap().file, file);
    fs::remove_file(manifest_path(&file)).unwrap();
    assert_eq!(fleet.content(), before);

    for (_, subject) in &subjects()[4..] {
        put_key(keys.path(), subject);
    }
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    assert!(
        rotation
            .apply(plan, &mut |_| ())
            .await
            .unwrap()
            .is_complete()
    );
    assert_eq!(fleet.under(&new).await, fleet.files());
}

#[tokio::test]
async fn links_and_deeper_directories_are_left_alone() {
    let fleet = Fleet::new().await;
    let other = Fleet::new().await;
    symlink(other.path(), fleet.path().join("linked")).unwrap();
    let deep = fleet.path().join("d/deep");
    fs::create_dir(&deep).unwrap();
    fs::write(deep.join("x.nimbus-enc"), "no manifest").unwrap();
    fs::write(fleet.path().join(".nimbus-enc"), "of no file").unwrap();
    let before = other.content();
    let (old, new) = (master(1), master(2));
    let rotation = KekRotation::new(&old, &new);
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    assert_eq!(plan.due(), fleet.files());
    assert!(
        rotation
            .apply(plan, &mut |_| ())
            .await
            .unwrap()
            .is_complete()
    );
    assert_eq!(other.content(), before);
}

#[tokio::test]
async fn one_file_is_rotated_alone() {
    let fleet = Fleet::new().await;
    let (old, new) = (master(1), master(2));
    let rotation = KekRotation::new(&old, &new);
    let file = fleet.path().join("c.sqlite3");
    let plan = rotation.plan_file(&file).await.unwrap();
    assert!(
        rotation
            .apply(plan, &mut |_| ())
            .await
            .unwrap()
            .is_complete()
    );
    assert_eq!(fleet.under(&new).await, [file]);
    let error = rotation
        .plan_file(&fleet.path().join("none"))
        .await
        .unwrap_err();
    assert!(matches!(error, RotationError::NoManifest { .. }), "{error}");
    let error = planned(&rotation, &fleet.path().join("none"))
        .await
        .unwrap_err();
    assert!(matches!(error, RotationError::Directory { .. }), "{error}");
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    assert_eq!((plan.due().len(), plan.already().len()), (6, 1));
}

/// Wraps as a master key does until it was asked so often; a key that it unwraps may be another.
#[derive(Debug)]
struct Faulty {
    inner: MasterKeyFile,
    left: AtomicUsize,
    honest: bool,
}

impl KeyProvider for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn key_id<'a>(&'a self, subject: &'a Subject) -> KeyFuture<'a, String> {
        self.inner.key_id(subject)
    }

    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move {
            let left = self.left.load(Ordering::Relaxed);
            self.left.store(left.saturating_sub(1), Ordering::Relaxed);
            if left == 0 {
                return Err(KeyError::Service {
                    provider: self.name().to_owned(),
                    subject: context.subject.to_string(),
                    source: "gone".into(),
                });
            }
            let mut wrapped = self.inner.wrap_key(context, dek).await?;
            wrapped.provider = self.name().to_owned();
            Ok(wrapped)
        })
    }

    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek> {
        Box::pin(async move {
            if !self.honest {
                return Ok(Dek::from_bytes(&[0; 32]));
            }
            let mut wrapped = wrapped.clone();
            wrapped.provider = MasterKeyFile::NAME.to_owned();
            self.inner.unwrap_key(context, &wrapped).await
        })
    }
}

#[tokio::test]
async fn a_failure_ends_the_rotation_and_the_next_one_goes_on() {
    let fleet = Fleet::new().await;
    let old = master(1);
    let new = Faulty {
        inner: master(2),
        // The third file has two keys: it fails at its second.
        left: AtomicUsize::new(3),
        honest: true,
    };
    let rotation = KekRotation::new(&old, &new);
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    let report = rotation.apply(plan, &mut |_| ()).await.unwrap();
    assert!(!report.is_complete());
    assert_eq!(report.rotated, fleet.files()[..2]);
    assert_eq!(report.failed[0].file, fleet.files()[2]);
    assert_eq!(
        (report.failed.len(), &*report.left),
        (1, &fleet.files()[3..])
    );
    assert_eq!(fleet.under(&new).await, fleet.files()[..2]);
    assert_eq!(fleet.under(&old).await, fleet.files()[2..]);

    new.left.store(100, Ordering::Relaxed);
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    assert_eq!((plan.due().len(), plan.already().len()), (5, 2));
    assert!(
        rotation
            .apply(plan, &mut |_| ())
            .await
            .unwrap()
            .is_complete()
    );
    assert_eq!(fleet.under(&new).await, fleet.files());
}

#[tokio::test]
async fn a_provider_that_gives_another_key_back_loses_nothing() {
    let fleet = Fleet::new().await;
    let old = master(1);
    let new = Faulty {
        inner: master(2),
        left: AtomicUsize::new(100),
        honest: false,
    };
    let rotation = KekRotation::new(&old, &new);
    let before = fleet.content();
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    let report = rotation.apply(plan, &mut |_| ()).await.unwrap();
    assert!(report.rotated.is_empty());
    assert_eq!((report.failed.len(), report.left.len()), (3, 4));
    for one in &report.failed {
        assert!(
            matches!(one.error, ManifestError::NotRewrapped { .. }),
            "{one}"
        );
    }
    assert_eq!(fleet.content(), before);
}

#[tokio::test]
async fn leftovers_of_manifests_are_removed_and_nothing_else() {
    let fleet = Fleet::new().await;
    let gone = [
        "a.sqlite3.nimbus-enc.tmp",
        "d/x.nimbus-enc.tmp",
        "of-no-file.nimbus-enc.tmp",
    ];
    let kept = ["a.sqlite3.tmp", "other.tmp", ".nimbus-enc.tmp"];
    for name in gone.iter().chain(&kept) {
        fs::write(fleet.path().join(name), "left").unwrap();
    }
    let (old, new) = (master(1), master(2));
    let rotation = KekRotation::new(&old, &new);
    let plan = planned(&rotation, fleet.path()).await.unwrap();
    rotation.apply(plan, &mut |_| ()).await.unwrap();
    assert!(gone.iter().all(|name| !fleet.path().join(name).exists()));
    assert!(kept.iter().all(|name| fleet.path().join(name).exists()));
}

#[test]
fn a_manifest_can_be_looked_at_without_knowing_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    assert_eq!(Manifest::find(&file).unwrap(), None);
    let made = futures_util::future::FutureExt::now_or_never(Manifest::create(
        &master(1),
        Subject::control(),
        CREATED,
    ));
    let (manifest, _) = made.unwrap().unwrap();
    manifest.write_new(&file).unwrap();
    let found = Manifest::find(&file).unwrap().unwrap();
    assert_eq!(found.current().provider, MasterKeyFile::NAME);
    assert_eq!(found, manifest);
}

static STEPS: AtomicUsize = AtomicUsize::new(0);

/// Kills this process at the step that it was told of.
fn kill_at_step(_: Step) {
    let last: usize = std::env::var("NIMBUS_TEST_ROTATION_STEP")
        .unwrap()
        .parse()
        .unwrap();
    if STEPS.fetch_add(1, Ordering::SeqCst) == last {
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
        loop {
            std::thread::park();
        }
    }
}

/// What the child of the next test does.
#[tokio::test]
async fn child_that_is_killed() {
    let Some(dir) = std::env::var_os("NIMBUS_TEST_ROTATION_DIR") else {
        return;
    };
    let (old, new) = (master(1), master(2));
    let mut rotation = KekRotation::new(&old, &new);
    rotation.step = kill_at_step;
    let plan = planned(&rotation, Path::new(&dir)).await.unwrap();
    assert!(
        rotation
            .apply(plan, &mut |_| ())
            .await
            .unwrap()
            .is_complete()
    );
}

/// Runs the rotation in a process that is killed after so many steps; whether it was.
fn killed_at(step: usize, dir: &Path) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rotation::tests::child_that_is_killed"])
        .env("NIMBUS_TEST_ROTATION_DIR", dir)
        .env("NIMBUS_TEST_ROTATION_STEP", step.to_string())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    !status.success()
}

#[tokio::test]
async fn kill_9_at_every_step_loses_nothing_and_the_next_run_finishes() {
    let (old, new) = (master(1), master(2));
    let mut step = 0;
    loop {
        let fleet = Fleet::new().await;
        let killed = killed_at(step, fleet.path());
        let (before, after) = (fleet.under(&old).await, fleet.under(&new).await);
        assert_eq!(before.len() + after.len(), 7, "step {step}");
        let rotation = KekRotation::new(&old, &new);
        let plan = planned(&rotation, fleet.path()).await.unwrap();
        assert_eq!(
            (plan.due(), plan.already()),
            (&*before, &*after),
            "step {step}"
        );
        let report = rotation.apply(plan, &mut |_| ()).await.unwrap();
        assert!(report.is_complete());
        assert_eq!(fleet.under(&new).await, fleet.files(), "step {step}");
        assert_eq!(fleet.content().len(), 7, "no leftover, step {step}");
        if !killed {
            break;
        }
        step += 1;
    }
    // Each file is written, synced and renamed, and directories are synced.
    assert!(step > 3 * 7 + 3, "{step}");
}

#[tokio::test]
async fn kill_9_again_and_again_comes_to_an_end() {
    let fleet = Fleet::new().await;
    // One batch has 9 steps and its directories.
    let mut runs = 0;
    while killed_at(11, fleet.path()) {
        runs += 1;
        assert!(runs < 7, "no progress");
    }
    assert!(runs > 0);
    assert_eq!(fleet.under(&master(2)).await, fleet.files());
    assert_eq!(fleet.content().len(), 7);
}

/// Compiles only while a server can run this on a thread of its choice.
#[test]
fn what_it_gives_can_be_sent() {
    fn sends<T: Send>(_: T) {}
    let (old, new) = (master(1), master(2));
    let rotation = KekRotation::new(&old, &new);
    sends(rotation.plan_directory(Path::new("/nonexistent"), &mut |_| ()));
    sends(rotation.apply(RotationPlan::default(), &mut |_| ()));
}
