//! What outlives a host: settings that somebody set, and VMs that are to come back.
//!
//! ```text
//!   Host ──steps──▶ writer (a thread) ──a transaction──▶ database (a file) ──▶ disk
//!     ◀──────────── done, or why not ◀──── synced ◀──────────────────────────
//! ```
//!
//! * What a client is told to be done has been synced to the disk before. The host itself waits for no disk: a thread does,
//!   which commits together what has come meanwhile, in its order.
//! * Steps that come together are kept all or none. Where the disk takes none, as when it is full, nothing has
//!   changed; should the disk hold half of a refused step all the same, the next one that it takes puts that right.
//! * What never had anything to keep has no file, and a file in which nothing is kept goes with its host.

mod database;
mod file;
#[cfg(test)]
mod power_loss;
mod record;

pub(super) use record::{Adoption, Definition, Kept, KeptDomain, LowBefore, Standing, Step, Way};

use super::runtime_dir::{Place, default_state_base};
use database::Database;
use file::{FileError, StateFile};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::{io, mem};
use thiserror::Error;
use tokio::sync::oneshot;

/// What is committed together at most.
const MOST_JOBS: usize = 256;
/// The environment variable that names another folder.
pub const STATE_VARIABLE: &str = "BALLONET_STATE";

/// Why state is not kept.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct StateError(#[from] Why);

#[derive(Debug, Error)]
enum Why {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the host is ending")]
    Closed,
    #[error("no thread can be started for it")]
    Thread(#[source] io::Error),
}

/// The folder for state of this user's hosts, unless told otherwise.
#[must_use]
pub fn default_folder() -> Option<PathBuf> {
    default_state_base().map(|base| base.join("ballonet"))
}

/// Keeps the state of a host.
#[derive(Debug)]
pub(super) struct StateStore(Mutex<Writing>);

#[derive(Debug)]
enum Writing {
    /// Nothing is kept.
    Off,
    On {
        jobs: Sender<Job>,
        ended: oneshot::Receiver<()>,
    },
    /// Nothing is kept any more.
    Closed,
}

/// Steps that are taken together, and who waits for that.
#[derive(Debug)]
struct Job {
    steps: Vec<Step>,
    done: oneshot::Sender<Result<(), StateError>>,
}

/// What is done once the disk has it.
pub(super) struct Commit(oneshot::Receiver<Result<(), StateError>>);

impl Commit {
    /// Waits for that.
    ///
    /// # Errors
    /// When nothing of it was done, and why.
    pub(super) async fn done(self) -> Result<(), StateError> {
        self.0.await.unwrap_or(Err(Why::Closed.into()))
    }
}

impl StateStore {
    /// One that keeps nothing.
    pub(super) fn off() -> Self {
        Self(Mutex::new(Writing::Off))
    }

    /// The one of a place, in a folder, with what is kept there.
    ///
    /// # Errors
    /// When there is a file that cannot be read, is another's, or of a newer format.
    pub(super) fn open(folder: &Path, place: &Place) -> Result<(Self, Kept), StateError> {
        let file = StateFile::of(place, folder);
        let (database, kept) = match file.open().map_err(Why::File)? {
            Some((database, kept)) => (Some(database), kept),
            None => (None, Kept::default()),
        };
        if database.is_some() {
            tracing::info!("what outlives a host is kept in {}", file.path().display());
        }
        let (jobs, taken) = mpsc::channel();
        let (told, ended) = oneshot::channel();
        let writer = Writer {
            file,
            database,
            kept: kept.clone(),
        };
        let work = move || {
            writer.work(&taken);
            drop(told);
        };
        let thread = thread::Builder::new().name("state".into());
        thread.spawn(work).map_err(Why::Thread)?;
        let writing = Writing::On { jobs, ended };
        Ok((Self(Mutex::new(writing)), kept))
    }

    /// Has steps taken, all or none. They are under way when this returns, behind all that came before.
    pub(super) fn commit(&self, steps: Vec<Step>) -> Commit {
        let (done, commit) = oneshot::channel();
        let job = Job { steps, done };
        let unsent = match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Writing::On { jobs, .. } => jobs.send(job).err().map(|unsent| (unsent.0, Err(()))),
            Writing::Off => Some((job, Ok(()))),
            Writing::Closed => Some((job, Err(()))),
        };
        if let Some((job, is_done)) = unsent {
            // Who does not wait for it is not told.
            drop(job.done.send(is_done.map_err(|()| Why::Closed.into())));
        }
        Commit(commit)
    }

    /// Whether anything is kept.
    pub(super) fn keeps(&self) -> bool {
        !matches!(
            *self.0.lock().unwrap_or_else(PoisonError::into_inner),
            Writing::Off
        )
    }

    /// Waits until all that was committed is done. Nothing is from here on.
    pub(super) async fn close(&self) {
        let writing = {
            let mut writing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            mem::replace(&mut *writing, Writing::Closed)
        };
        if let Writing::On { jobs, ended } = writing {
            drop(jobs);
            // Its end is told by an error.
            drop(ended.await);
        }
    }
}

/// Who alone has the file.
#[derive(Debug)]
struct Writer {
    file: StateFile,
    /// None while there is no file, and when the disk has failed: then it must be opened anew.
    database: Option<Database>,
    /// What was said to be done.
    kept: Kept,
}

impl Writer {
    fn work(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut together = vec![first];
            together.extend(jobs.try_iter().take(MOST_JOBS - 1));
            self.take_together(together);
        }
        // Closed first, for it is written to once more then.
        if self.database.take().is_some() && self.kept.is_empty() {
            self.file.remove();
        }
    }

    /// Takes jobs in one transaction; each alone if that fails, so that none is refused for another's sake.
    fn take_together(&mut self, jobs: Vec<Job>) {
        let steps: Vec<Step> = jobs.iter().flat_map(|job| job.steps.clone()).collect();
        let is_alone = jobs.len() == 1;
        let mut result = Some(self.take(steps));
        for Job { steps, done } in jobs {
            let result = match result.take() {
                Some(Err(error)) if is_alone => Err(error),
                Some(Ok(())) => {
                    result = Some(Ok(()));
                    Ok(())
                }
                _ => self.take(steps),
            };
            // Who does not wait for it is not told.
            drop(done.send(result.map_err(|error| Why::from(error).into())));
        }
    }

    fn take(&mut self, steps: Vec<Step>) -> Result<(), FileError> {
        let committed = self.database()?.commit(&steps);
        match committed {
            Ok(()) => {
                steps.into_iter().for_each(|step| self.kept.take(step));
                Ok(())
            }
            Err(source) => {
                self.database = None;
                let path = self.file.path().into();
                // The disk may hold some of it: that is undone now, or with the next job if the disk does not take that.
                if let Err(error) = self.database() {
                    tracing::warn!("{}", crate::error_chain(&error));
                }
                Err(FileError::Database { path, source })
            }
        }
    }

    /// The open database, which holds what was said to be done and nothing else.
    fn database(&mut self) -> Result<&Database, FileError> {
        let open = match self.database.take() {
            Some(open) => open,
            None => {
                let (open, found) = match self.file.open()? {
                    Some(found) => found,
                    None => (self.file.make()?, Kept::default()),
                };
                if found != self.kept {
                    open.replace(&self.kept)
                        .map_err(|source| FileError::Database {
                            path: self.file.path().into(),
                            source,
                        })?;
                }
                open
            }
        };
        Ok(self.database.insert(open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::runtime_dir::Claim;
    use api::{HostChange, RestartPolicy, RunRequest};
    use protocol::VmName;

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.build().unwrap()
    }

    fn name(name: &str) -> VmName {
        name.parse().unwrap()
    }

    fn definition(order: u64) -> Box<Definition> {
        Box::new(Definition {
            order,
            request: RunRequest {
                restart: RestartPolicy::Always,
                ..RunRequest::default()
            },
            balloon_bytes: None,
        })
    }

    fn sharing(sharing: bool) -> Step {
        Step::Settings(HostChange {
            sharing: Some(sharing),
            ..HostChange::default()
        })
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    #[test]
    fn what_was_committed_is_there_when_it_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(&folder.path().join("x.sock")).unwrap();
        let state = folder.path().join("state");
        let open = || StateStore::open(&state, claim.place()).unwrap();
        runtime().block_on(async {
            let (store, kept) = open();
            assert_eq!(kept, Kept::default());
            assert_eq!(files(&state), 0, "nothing is kept, and there is no file");
            // As a loss of power leaves it that comes while a file is made.
            let half = StateFile::of(claim.place(), &state)
                .path()
                .with_extension("new");
            std::fs::create_dir(&state).unwrap();
            std::fs::write(half, "half").unwrap();
            let steps = vec![
                sharing(false),
                Step::Define(name("a"), definition(1)),
                Step::Define(name("b"), definition(2)),
                Step::Stand(name("b"), Standing::Stopped),
                Step::Stand(name("nobody"), Standing::Stopped),
            ];
            store.commit(steps).done().await.unwrap();
            assert_eq!(files(&state), 1);
            let error = StateStore::open(&state, claim.place()).unwrap_err();
            let told = crate::error_chain(&error);
            assert!(told.contains("another process has it open"), "{told}");
            store.close().await;
            assert!(store.commit(Vec::new()).done().await.is_err());

            let (store, kept) = open();
            assert_eq!(kept.settings.sharing, Some(false));
            let definitions: Vec<_> = kept.definitions.into_iter().collect();
            let expected = [(1, Standing::Wanted), (2, Standing::Stopped)];
            let expected = expected.map(|(order, standing)| (*definition(order), standing));
            let names = ["a", "b"].map(name);
            assert_eq!(
                definitions,
                names.into_iter().zip(expected).collect::<Vec<_>>()
            );

            let forget = |word| vec![Step::Forget(name(word))];
            for steps in [
                forget("a"),
                forget("b"),
                vec![Step::Settings(HostChange::default())],
            ] {
                // Nobody waits for it, and it is done all the same.
                drop(store.commit(steps));
            }
            store.close().await;
            assert_eq!(
                files(&state),
                0,
                "nothing is kept any more, and there is no file"
            );
        });
    }

    #[test]
    fn a_newer_format_and_another_hosts_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let claim = |socket: &str| Claim::take(&folder.path().join(socket)).unwrap();
        let (one, other) = (claim("one"), claim("other"));
        let state = folder.path().join("state");
        runtime().block_on(async {
            let (store, _) = StateStore::open(&state, one.place()).unwrap();
            store.commit(vec![sharing(true)]).done().await.unwrap();
            store.close().await;
        });
        let [ours, theirs] = [&one, &other].map(|claim| StateFile::of(claim.place(), &state));
        std::fs::copy(ours.path(), theirs.path()).unwrap();
        let told = crate::error_chain(&StateStore::open(&state, other.place()).unwrap_err());
        assert!(
            told.contains("state of the host at") && told.contains("one"),
            "{told}"
        );
        let (database, _) = ours.open().unwrap().unwrap();
        database.set_version(record::VERSION + 1);
        drop(database);
        let told = crate::error_chain(&StateStore::open(&state, one.place()).unwrap_err());
        assert!(
            told.contains("version 2") && told.contains("use a newer"),
            "{told}"
        );
        std::fs::write(ours.path(), "something else").unwrap();
        assert!(StateStore::open(&state, one.place()).is_err());
        assert_eq!(std::fs::read(ours.path()).unwrap(), b"something else");
    }
}
