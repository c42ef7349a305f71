use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// An address of this host with a port that nothing listens on.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn connect(index: usize, size: usize, master: &str) -> Result<TcpRing, CollectiveError> {
    TcpRing::connect(&TcpOptions {
        rank: Rank::new(index, size)?,
        master,
        patience: Duration::from_secs(20),
        waits: &|| true,
    })
}

/// By what ranks exchange.
#[derive(Clone, Copy, Debug)]
enum By {
    Threads,
    Tcp,
}

const ALL: [By; 2] = [By::Threads, By::Tcp];

/// What `work` returns on each of `size` ranks.
fn on_ranks<R: Send>(by: By, size: usize, work: impl Fn(&dyn Collective) -> R + Sync) -> Vec<R> {
    let master = free_address();
    let results = ThreadRank::on_each(size, |rank| match by {
        By::Threads => work(&rank),
        By::Tcp => work(&connect(rank.rank().index, size, &master).unwrap()),
    });
    results.unwrap()
}

fn values(rank: usize, length: usize) -> Vec<f32> {
    (0..length)
        .map(|at| ((at * 31 + rank * 17) as f32).sin())
        .collect()
}

#[test]
fn sums_are_those_of_all_ranks_and_the_same_bits_on_each() {
    for by in ALL {
        // Fewer values than ranks, a length that the ranks do not divide, more than a block.
        for (size, length) in [(1, 5), (2, 1), (2, 7), (3, 2), (4, 1000), (3, 1_000_003)] {
            let mut expected = vec![0.0_f64; length];
            for rank in 0..size {
                let values = values(rank, length);
                expected
                    .iter_mut()
                    .zip(values)
                    .for_each(|(sum, value)| *sum += f64::from(value));
            }
            for (format, tolerance) in [(ExchangeFormat::F32, 1e-6), (ExchangeFormat::Bf16, 0.03)] {
                let sums = on_ranks(by, size, |ranks| {
                    let mut values = values(ranks.rank().index, length);
                    ranks.all_reduce(&mut values, format).unwrap();
                    values
                });
                assert!(sums.iter().all(|sum| *sum == sums[0]), "{size} {length}");
                for (found, expected) in sums[0].iter().zip(&expected) {
                    let apart = (f64::from(*found) - expected).abs();
                    assert!(apart < tolerance, "{size} {length} {format:?}: {apart}");
                }
            }
        }
    }
}

#[test]
fn messages_of_any_length_come_in_the_order_of_the_ranks() {
    for by in ALL {
        let message = |rank: usize| vec![rank as u8; rank * 100_000];
        for size in 1..5 {
            let expected: Vec<Vec<u8>> = (0..size).map(message).collect();
            let found = on_ranks(by, size, |ranks| {
                ranks.barrier().unwrap();
                ranks.all_gather(&message(ranks.rank().index)).unwrap()
            });
            assert!(found.iter().all(|found| *found == expected), "{size}");
        }
    }
}

#[test]
fn small_values_are_gathered_added_and_compared() {
    for by in ALL {
        let found = on_ranks(by, 3, |ranks| {
            let index = ranks.rank().index;
            let mut sums = [index as f64, 0.5];
            ranks.sum(&mut sums).unwrap();
            let first: String = ranks.of_first(&format!("of rank {index}")).unwrap();
            let any = [
                ranks.any(index == 2).unwrap(),
                ranks.any(index == 7).unwrap(),
            ];
            ranks.agree("the seed", "0").unwrap();
            let error = ranks.agree("the seed", &(index / 2).to_string());
            (sums, first, any, error.unwrap_err().to_string())
        });
        for (sums, first, any, error) in found {
            assert_eq!((sums, first.as_str()), ([3.0, 1.5], "of rank 0"));
            assert_eq!(any, [true, false]);
            assert_eq!(error, "rank 2: the seed: expected 0 as on rank 0, found 1");
        }
    }
}

#[test]
fn ranks_at_different_operations_are_an_error() {
    for by in ALL {
        let errors = on_ranks(by, 2, |ranks| match ranks.rank().index {
            0 => ranks.all_reduce(&mut [1.0], ExchangeFormat::F32).err(),
            _ => ranks.all_gather(b"stop").err(),
        });
        let is_disagreement = |error: &Option<CollectiveError>| {
            matches!(
                error,
                Some(CollectiveError::Disagree { .. } | CollectiveError::Lost { .. })
            )
        };
        assert!(errors.iter().all(is_disagreement), "{errors:?}");
        let errors = on_ranks(by, 2, |ranks| {
            let mut values = vec![0.0; 3 + ranks.rank().index];
            ranks.all_reduce(&mut values, ExchangeFormat::F32).err()
        });
        assert!(errors.iter().all(is_disagreement), "{errors:?}");
    }
}

#[test]
fn a_rank_that_is_gone_ends_the_others() {
    for by in ALL {
        let begun = Instant::now();
        // Rank 1 goes before, or in the middle of, a sum of many values.
        let errors = on_ranks(by, 3, |ranks| {
            if ranks.rank().index == 1 {
                return None;
            }
            let mut values = vec![0.0; 3_000_000];
            ranks.all_reduce(&mut values, ExchangeFormat::F32).err()
        });
        for rank in [0, 2] {
            let lost = matches!(&errors[rank], Some(CollectiveError::Lost { .. }));
            assert!(lost, "{errors:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn strangers_do_not_disturb() {
    let master = free_address();
    thread::scope(|scope| {
        let first = scope.spawn(|| connect(0, 2, &master));
        let mut stranger = loop {
            if let Ok(stream) = TcpStream::connect(&master) {
                break stream;
            }
            thread::sleep(Duration::from_millis(10));
        };
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n")
            .unwrap();
        // Of another training: it learns that it is wrong here.
        let error = connect(2, 3, &master).unwrap_err().to_string();
        assert!(
            error.contains("another number of ranks") && error.contains("--master"),
            "{error}"
        );
        let second = connect(1, 2, &master);
        assert!(first.join().unwrap().is_ok() && second.is_ok());
        let mut rest = Vec::new();
        let _ = stranger.read_to_end(&mut rest);
        assert!(rest.is_empty());
    });
}

#[test]
fn ranks_that_do_not_appear_are_not_awaited_forever() {
    let master = free_address();
    let options = |index: usize, waits: &'static dyn Fn() -> bool| TcpOptions {
        rank: Rank::new(index, 2).unwrap(),
        master: &master,
        patience: Duration::from_millis(200),
        waits,
    };
    for index in 0..2 {
        let error = TcpRing::connect(&options(index, &|| true)).unwrap_err();
        assert!(
            matches!(&error, CollectiveError::NotConnected { rank, .. } if *rank == index),
            "{error}"
        );
        let stopped = TcpRing::connect(&options(index, &|| false)).unwrap_err();
        assert_eq!(stopped, CollectiveError::Stopped);
    }
    assert!(Rank::new(2, 2).is_err() && Rank::new(0, MOST_RANKS + 1).is_err());
    assert!(ThreadRank::all(0).is_err() && ThreadRank::all(MOST_RANKS + 1).is_err());
}

#[test]
fn lengths_of_messages_are_limited() {
    let limit = LONGEST_MESSAGE as u64;
    assert_eq!(check_length(1, limit), Ok(LONGEST_MESSAGE));
    for length in [limit + 1, u64::MAX] {
        let error = check_length(1, length).unwrap_err();
        assert_eq!(error, CollectiveError::TooLong { rank: 1, length });
    }
}
