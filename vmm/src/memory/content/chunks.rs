//! Work on chunks, shared out to threads.

use std::{
    num::NonZero,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::config::PAGE_SIZE;

/// Threads that copy memory at most: more do not make memory faster.
const THREADS_MAX: usize = 8;
/// Chunks below which a thread more costs more than it gains.
const CHUNKS_PER_THREAD: usize = 16;

/// Calls `work` for each item, on as many threads as are worth it, each with a buffer of `buffer` bytes.
/// What it returns comes in no particular order. The first error ends all.
pub fn for_each<Item, Done, Error>(
    items: &[Item],
    buffer: usize,
    work: impl Fn(&Item, &mut [u8]) -> Result<Option<Done>, Error> + Sync,
) -> Result<Vec<Done>, Error>
where
    Item: Sync,
    Done: Send,
    Error: Send,
{
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(THREADS_MAX).min(items.len() / CHUNKS_PER_THREAD).max(1);
    let next = AtomicUsize::new(0);
    let run = || {
        let mut buffer = vec![0; buffer];
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            match work(item, &mut buffer) {
                Ok(result) => done.extend(result),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    std::thread::scope(|scope| {
        // A thread that cannot be had is one fewer.
        let others: Vec<_> = (1..threads)
            .filter_map(|_| std::thread::Builder::new().name("memory".into()).spawn_scoped(scope, run).ok())
            .collect();
        let mut all = run();
        for other in others {
            // A panic aborts the process.
            let Ok(result) = other.join() else { continue };
            match (&mut all, result) {
                (Ok(all), Ok(more)) => all.extend(more),
                (Ok(_), Err(error)) => all = Err(error),
                (Err(_), _) => {}
            }
        }
        all
    })
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // In blocks without a branch inside, which the compiler makes wide.
    let blocks = bytes.chunks_exact(64);
    let rest = blocks.remainder().iter().all(|byte| *byte == 0);
    rest && blocks.into_iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The runs of pages in `bytes` that are not zero, as byte ranges.
pub fn filled(bytes: &[u8]) -> Vec<Range<usize>> {
    let page = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for content in bytes.chunks(page) {
        let end = at + content.len();
        if !is_zero(content) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}
