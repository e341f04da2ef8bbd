//! A guest's life, in one order of its threads.

use crate::agent::Agent;
use crate::chance::{choose, shuffled};
use crate::event::lock;
use crate::file::Readers;
use crate::guest::{Common, Expected, OWN, PAGES, Processor};
use crate::keeper;
use crate::pager::Pager;
use crate::swap::Swap;
use shuttle::thread::{self, JoinHandle};
use std::sync::Arc;
use swap::When;

/// Of the file: with the fewer of them the cleaner works as soon as one is used.
const SLOTS: [u32; 2] = [6, 9];

/// From when all of the guest's memory is out to when it has read all of it once more.
///
/// # Panics
/// If a page is lost, or a thread waits for ever.
pub(crate) fn life() {
    let swap = Arc::new(Swap::new(PAGES, choose(&SLOTS)));
    let readers = Arc::new(Readers::default());
    let common = Arc::new(Common::new());
    let mut agent = Agent::new(Arc::clone(&swap));
    take_all_out(&swap, &mut agent);

    let others = start_others(&swap, &readers);
    let inbox = Arc::clone(&common);
    let agent = thread::spawn(move || agent.run(inbox.inbox()));
    let processors = run_guest(&swap, &common);
    common.inbox().end();
    agent.join().unwrap();
    (processors.iter()).for_each(|processor| processor.check(&swap.kernel));
    common.check(&swap.kernel);

    swap.end();
    readers.end();
    others.into_iter().for_each(|thread| thread.join().unwrap());
    lock(&swap.log).audit().unwrap();
}

/// Most of it is in the file then.
fn take_all_out(swap: &Swap, agent: &mut Agent) {
    (0..PAGES).for_each(|index| Expected::at_first(index).write(&swap.kernel));
    swap.guard(0..PAGES);
    for index in shuffled((0..PAGES).collect()) {
        agent.take_out_behind_fence(&(index..index + 1), vec![index], &[], false);
    }
    keeper::work(swap, When::Now);
}

/// Pager, keeper and reader.
fn start_others(swap: &Arc<Swap>, readers: &Arc<Readers>) -> [JoinHandle<()>; 3] {
    let pager = Pager::new(Arc::clone(swap), Arc::clone(readers));
    let (of_keeper, of_reader) = (Arc::clone(swap), Arc::clone(swap));
    let readers = Arc::clone(readers);
    [
        thread::spawn(move || pager.run()),
        thread::spawn(move || keeper::run(&of_keeper)),
        thread::spawn(move || readers.run(&of_reader)),
    ]
}

fn run_guest(swap: &Arc<Swap>, common: &Arc<Common>) -> Vec<Processor> {
    let start = |number: usize| {
        let (swap, common) = (Arc::clone(swap), Arc::clone(common));
        thread::spawn(move || Processor::new(number).run(&common, &swap))
    };
    let processors: Vec<_> = (0..OWN.len()).map(start).collect();
    let join = |processor: JoinHandle<Processor>| processor.join().unwrap();
    processors.into_iter().map(join).collect()
}
