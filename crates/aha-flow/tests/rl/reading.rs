//! Tables while they grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aha_data::{Session, SessionOptions};
use aha_flow::rundir::RunDir;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;

use crate::world::World;

const SQL: &str = "SELECT step, count(*) AS n, count(DISTINCT rollout_id) AS ids, count(reward) AS rewards \
     FROM rollouts GROUP BY step ORDER BY step";

/// (step, rows, ids, rewards) of every step that a reader sees now.
async fn seen(dir: &RunDir) -> Vec<[i64; 4]> {
    let session = Session::new(&SessionOptions::default()).unwrap();
    session.register_run(dir.root()).unwrap();
    let mut found = Vec::new();
    for batch in session.collect(SQL).await.unwrap() {
        let column = |idx: usize| batch.column(idx).as_primitive::<Int64Type>().clone();
        let columns = [0, 1, 2, 3].map(column);
        found.extend((0..batch.num_rows()).map(|row| columns.each_ref().map(|c| c.value(row))));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_a_running_stage_sees_whole_steps_only() {
    let world = World::new();
    let done = Arc::new(AtomicBool::new(false));
    let dir = world.dir("run");
    let reader = {
        let (done, dir) = (Arc::clone(&done), dir.clone());
        async move {
            let (mut partial_count, mut last) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
                if !dir.table("zero").join(aha_rollout::table::SCHEMA_PART).is_file() {
                    continue;
                }
                let steps = seen(&dir).await;
                for (idx, step) in steps.iter().enumerate() {
                    assert_eq!(*step, [idx as i64 + 1, 16, 16, 16]);
                }
                assert!(steps.len() >= last, "rows that were seen are gone");
                last = steps.len();
                partial_count += usize::from(last < 40);
            }
            partial_count
        }
    };
    let run = async {
        world.finish("run", &["stage.zero.steps=40"]).await;
        done.store(true, Ordering::Relaxed);
    };
    let (partial_count, ()) = futures::join!(reader, run);
    assert!(partial_count >= 3, "the reader saw {partial_count} unfinished tables");
    assert_eq!(seen(&dir).await.len(), 40);
}
