//! Loss of power, simulated: the disk stops at each point of a run, and what it had not synced is there, is not, is there
//! in part or in another order. Opened again, all that was said to be done is there, and nothing half.

use super::database::Database;
use super::record::{Definition, Kept, Standing, Step};
use crate::host::tokens::TokenRecord;
use api::{HostChange, RestartPolicy, RunRequest};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const PLACE: &str = "/run/x.sock";
/// What a disk writes whole.
const SECTOR: usize = 512;
/// Ways in which what was not synced is lost, for each point.
const WAYS: u64 = 6;

/// What a disk was told.
#[derive(Clone, Debug)]
enum Order {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// A disk that remembers what it was told.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    orders: Vec<Order>,
    /// It takes so many more; any number if none is given.
    room: Option<usize>,
}

impl Disk {
    fn holding(bytes: Vec<u8>) -> Self {
        let inner = Inner {
            bytes,
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn orders(&self) -> usize {
        self.inner().orders.len()
    }

    fn bytes(&self) -> Vec<u8> {
        self.inner().bytes.clone()
    }

    fn take(&self, order: Order) -> io::Result<()> {
        let mut inner = self.inner();
        match &mut inner.room {
            Some(0) => return Err(io::ErrorKind::StorageFull.into()),
            Some(room) => *room -= 1,
            None => {}
        }
        apply(&mut inner.bytes, &order);
        inner.orders.push(order);
        Ok(())
    }
}

fn apply(bytes: &mut Vec<u8>, order: &Order) {
    match order {
        Order::Write(offset, data) => {
            let begin = usize::try_from(*offset).unwrap();
            let end = begin + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[begin..end].copy_from_slice(data);
        }
        Order::Length(length) => bytes.resize(usize::try_from(*length).unwrap(), 0),
        Order::Sync => {}
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap();
        let inner = self.inner();
        let there = inner.bytes.get(begin..begin + out.len());
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.take(Order::Length(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.take(Order::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.take(Order::Write(offset, data.into()))
    }
}

/// What is committed one after the other. Some of it is large, so that the database has to grow.
fn commits() -> Vec<Vec<Step>> {
    let name = |number: u64| format!("vm-{number}").parse().unwrap();
    let define = |number: u64, filler: usize| {
        let definition = Definition {
            order: number,
            request: RunRequest {
                restart: RestartPolicy::Always,
                cmdline: Some("x".repeat(filler)),
                ..RunRequest::default()
            },
            balloon_bytes: Some(number << 20),
        };
        Step::Define(name(number), Box::new(definition))
    };
    let memory = |bytes| {
        Step::Settings(HostChange {
            memory_bytes: Some(bytes),
            ..HostChange::default()
        })
    };
    let token = |number: u64| format!("token-{number}").parse().unwrap();
    let add = |number| Step::AddToken(token(number), TokenRecord::example(number));
    let remove = |number| Step::RemoveToken(token(number));
    vec![
        vec![memory(1 << 30), add(1)],
        vec![define(1, 10), define(2, 6000)],
        vec![Step::Stand(name(1), Standing::Stopped)],
        vec![define(1, 700_000), memory(2 << 30)],
        vec![Step::Forget(name(2)), define(3, 1)],
        vec![Step::Stand(name(3), Standing::SwitchedOff), add(2)],
        vec![Step::Forget(name(1)), memory(3 << 30), remove(1)],
        vec![define(4, 300_000), Step::Stand(name(1), Standing::Wanted)],
    ]
}

/// A run to its end: how many orders the disk had when each commit was said to be done, the making before the first
/// among them; and what is to be kept after each.
struct Run {
    disk: Disk,
    done_at: Vec<usize>,
    kept: Vec<Kept>,
}

impl Run {
    fn new() -> Self {
        let disk = Disk::default();
        let database = Database::make(disk.clone(), PLACE).unwrap();
        let mut run = Self {
            done_at: vec![disk.orders()],
            kept: vec![Kept::default()],
            disk,
        };
        for steps in commits() {
            database.commit(&steps).unwrap();
            run.done_at.push(run.disk.orders());
            let mut kept = run.kept.last().unwrap().clone();
            steps.into_iter().for_each(|step| kept.take(step));
            run.kept.push(kept);
        }
        drop(database);
        run
    }

    /// What the database has when the disk held these bytes and had had so many orders, if that must not be.
    fn fault(&self, bytes: Vec<u8>, orders: usize) -> Option<String> {
        let done = self.done_at.iter().filter(|&&at| at <= orders).count() - 1;
        let is_under_way = done + 1 < self.kept.len();
        let found = match Database::open(Disk::holding(bytes), PLACE) {
            Ok((_, found)) => found,
            Err(error) => return Some(crate::error_chain(&error)),
        };
        let allowed = &self.kept[done..=done + usize::from(is_under_way)];
        (!allowed.contains(&found)).then(|| format!("after {done} commits: {found:?}"))
    }

    /// The first fault when the disk stops at each point, if `syncs` says that it syncs when it is told to.
    fn first_fault(&self, syncs: bool) -> Option<String> {
        let orders = self.disk.inner().orders.clone();
        let made = self.done_at[0];
        let mut synced = Vec::new();
        orders[..made]
            .iter()
            .for_each(|order| apply(&mut synced, order));
        let mut unsynced: Vec<&Order> = Vec::new();
        for (place, order) in orders.iter().enumerate().skip(made) {
            match order {
                Order::Sync if syncs => {
                    unsynced.iter().for_each(|order| apply(&mut synced, order));
                    unsynced.clear();
                }
                order => unsynced.push(order),
            }
            for way in 0..WAYS {
                let left = left_by(&synced, &unsynced, way);
                if let Some(fault) = self.fault(left, place + 1) {
                    return Some(format!("order {place}, way {way}: {fault}"));
                }
            }
        }
        None
    }
}

/// What a loss of power leaves: what was synced, and of what was not nothing, all, all but the end of the last, or
/// some in any order, each in part.
fn left_by(synced: &[u8], unsynced: &[&Order], way: u64) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(way + 1000 * unsynced.len() as u64);
    let mut bytes = synced.to_vec();
    let mut left: Vec<Order> = unsynced.iter().map(|&order| order.clone()).collect();
    match way {
        0 => left.clear(),
        1 => {}
        2 => {
            if let Some(last) = left.last_mut() {
                tear(last, &mut random);
            }
        }
        _ => {
            left.retain(|_| random.random_bool(0.6));
            left.shuffle(&mut random);
            for order in &mut left {
                if random.random_bool(0.3) {
                    tear(order, &mut random);
                }
            }
        }
    }
    left.iter().for_each(|order| apply(&mut bytes, order));
    bytes
}

/// Only some sectors of it, from its beginning.
fn tear(order: &mut Order, random: &mut SmallRng) {
    if let Order::Write(_, data) = order {
        let sectors = random.random_range(0..=data.len() / SECTOR);
        data.truncate(sectors * SECTOR);
    }
}

#[test]
fn whatever_a_loss_of_power_leaves_all_that_was_done_is_there_and_nothing_half() {
    let run = Run::new();
    let points = run.disk.orders() - run.done_at[0];
    assert!(points > 50, "the disk was told only {points} things");
    assert_eq!(run.first_fault(true), None);
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let run = Run::new();
    assert_ne!(run.first_fault(false), None);
}

#[test]
fn a_disk_that_fails_at_any_point_leaves_what_was_before_or_all_of_what_came() {
    let run = Run::new();
    let last = commits().pop().unwrap();
    let [before, after] = &run.kept[run.kept.len() - 2..] else {
        panic!("there are commits");
    };
    for room in 0.. {
        let disk = Disk::default();
        let database = Database::make(disk.clone(), PLACE).unwrap();
        database.replace(before).unwrap();
        disk.inner().room = Some(room);
        let result = database.commit(&last);
        drop(database);
        disk.inner().room = None;
        let (database, found) = Database::open(Disk::holding(disk.bytes()), PLACE).unwrap();
        if result.is_ok() {
            assert_eq!(found, *after);
            assert!(room > 2, "it takes more than that");
            return;
        }
        assert!(found == *before || found == *after, "{room}: {found:?}");
        // So a refused commit is undone.
        database.replace(before).unwrap();
        drop(database);
    }
}
