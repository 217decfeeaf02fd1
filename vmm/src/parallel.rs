//! Work on many things at once, where that is faster.

use std::{
    num::NonZero,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Threads at most: more make neither memory nor the kernel faster.
const THREADS_MAX: usize = 8;

/// How many threads of this process can run at once, as it was when that was first asked: finding out takes a dozen
/// system calls.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// Calls `work` for each item, on no more threads than one for every `share` items, each with a buffer of
/// `buffer` bytes. What it returns comes in no particular order. The first error ends all.
///
/// # Errors
/// That of `work`.
pub fn for_each<Item, Done, Error>(
    items: &[Item],
    share: usize,
    buffer: usize,
    work: impl Fn(&Item, &mut [u8]) -> Result<Option<Done>, Error> + Sync,
) -> Result<Vec<Done>, Error>
where
    Item: Sync,
    Done: Send,
    Error: Send,
{
    let worth = (items.len() / share.max(1)).clamp(1, THREADS_MAX);
    let threads = if worth > 1 { worth.min(processors()) } else { 1 };
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
            .filter_map(|_| std::thread::Builder::new().name("parallel".into()).spawn_scoped(scope, run).ok())
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

/// Calls `work` for each item, as [`for_each`] does; what it returns is in the order of the items.
///
/// # Errors
/// That of `work`, for the first item of those that failed by the time.
pub fn map<Item, Done, Error>(
    items: &[Item],
    share: usize,
    work: impl Fn(&Item) -> Result<Done, Error> + Sync,
) -> Result<Vec<Done>, Error>
where
    Item: Sync,
    Done: Send,
    Error: Send,
{
    let numbered: Vec<(usize, &Item)> = items.iter().enumerate().collect();
    let mut done = for_each(&numbered, share, 0, |(number, item), _| Ok(Some((*number, work(item)?))))?;
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order() {
        let items: Vec<u32> = (0..1000).collect();
        let doubled = map(&items, 1, |item| Ok::<_, ()>(item * 2)).unwrap();
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(map(&[], 0, |(): &()| Ok::<_, ()>(())).unwrap().is_empty());
    }

    #[test]
    fn an_error_ends_all() {
        let items: Vec<u32> = (0..1000).collect();
        let failed = map(&items, 1, |item| if *item == 500 { Err(*item) } else { Ok(()) });
        assert_eq!(failed, Err(500));
    }
}
