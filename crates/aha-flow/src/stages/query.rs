//! The `query` stage: a query's result as a table, with what it must find.

use aha_data::{Format, Session, write_result};
use aha_rollout::read;

use super::completions::part_name;
use crate::error::{Error, Result};
use crate::pipeline::{Expect, QueryStage};
use crate::progress::{Event, Watcher};
use crate::rundir::RunDir;
use crate::stop::Stop;

/// Rows that a failed expectation shows.
const OFFENDING_ROWS_MAX: usize = 5;
/// Rows that are printed.
const PRINTED_ROWS_MAX: usize = 200;

/// What the stage works with.
pub struct Query<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its description.
    pub description: &'a str,
    /// Its settings.
    pub settings: &'a QueryStage,
    /// Where everything is written.
    pub dir: &'a RunDir,
    /// The tables.
    pub session: &'a Session,
    /// Who watches.
    pub watcher: &'a Watcher,
    /// Who may ask it to stop.
    pub stop: &'a Stop,
}

impl Query<'_> {
    /// Writes the result, checks it, and prints it if asked to.
    pub async fn run(&self) -> Result<()> {
        (self.watcher)(Event::StageStarted {
            stage: self.stage.to_owned(),
            kind: "query",
            step: 0,
            steps: 1,
        });
        self.check(self.write_when_there_is_room().await?)?;
        if self.settings.print { self.print().await } else { Ok(()) }
    }

    /// As [`Query::write`]. Where the disk is full, what it spilled and wrote is gone, and it is asked again later.
    async fn write_when_there_is_room(&self) -> Result<usize> {
        let mut wait = None;
        loop {
            // What was asked to stop is made again from its beginning: nothing of it is kept.
            let outcome = tokio::select! {
                biased;
                () = self.stop.requested() => return Err(Error::Interrupted),
                outcome = self.write() => outcome,
            };
            match (outcome, self.dir.room()) {
                (Err(Error::Full { message }), Some(room)) => {
                    wait.get_or_insert_with(|| room.begin(&message));
                    room.pause()?;
                }
                (outcome, _) => return outcome,
            }
        }
    }

    /// Writes the result, and returns the count of its rows.
    async fn write(&self) -> Result<usize> {
        let dir = self.dir.table(self.stage);
        self.dir.write(|| fs_err::create_dir_all(&dir).map_err(Error::io("create", &dir)))?;
        let path = dir.join(part_name(0));
        Ok(self.session.write_parquet(&self.settings.sql.0, &path).await?.rows_count)
    }

    /// Shows the stage's table.
    pub async fn print(&self) -> Result<()> {
        (self.watcher)(Event::Print {
            stage: self.stage.to_owned(),
            description: self.description.to_owned(),
            text: self.shown(PRINTED_ROWS_MAX)?,
        });
        Ok(())
    }

    fn check(&self, rows_count: usize) -> Result<()> {
        let is_met = match self.settings.expect {
            Expect::Any => true,
            Expect::Rows => rows_count > 0,
            Expect::NoRows => rows_count == 0,
        };
        if is_met {
            return Ok(());
        }
        if self.settings.expect == Expect::Rows {
            let hint =
                "look at the tables it reads with `aha query --run`, or set `expect` to \"any\"";
            return Err(Error::input_with("the query has to find rows, but finds none", hint));
        }
        let shown = self.shown(OFFENDING_ROWS_MAX)?;
        let message = format!("the query must find no rows, but finds {rows_count}:\n{shown}");
        let hint = format!("all of them are in the table `{}` of the run", self.stage);
        Err(Error::input_with(message, hint))
    }

    /// The first rows of the table, drawn as text.
    fn shown(&self, rows_max: usize) -> Result<String> {
        let path = self.dir.table(self.stage).join(part_name(0));
        let schema = read::read_schema(&path)?;
        let (first, rows_count) = read::read_first(&path, rows_max)?;
        let mut text = Vec::new();
        write_result(&schema, &first, Format::Table, &mut text)?;
        let mut text = String::from_utf8_lossy(&text).trim_end().to_owned();
        if rows_count > rows_max {
            text.push_str(&format!("\n… and {} more rows", rows_count - rows_max));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use aha_data::SessionOptions;

    use super::*;
    use crate::pipeline::Sql;

    async fn run(sql: &str, expect: Expect) -> (Result<()>, Vec<String>) {
        run_until(sql, expect, &Stop::default()).await
    }

    async fn run_until(sql: &str, expect: Expect, stop: &Stop) -> (Result<()>, Vec<String>) {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(temp.path());
        let session = Session::new(&SessionOptions::default()).unwrap();
        let printed: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = Arc::clone(&printed);
        let watcher: Watcher = Arc::new(move |event| {
            if let Event::Print { text, .. } = event {
                sink.lock().unwrap().push(text);
            }
        });
        let settings = QueryStage { sql: Sql(sql.to_owned()), expect, print: true };
        let query = Query {
            stage: "q",
            description: "",
            settings: &settings,
            dir: &dir,
            session: &session,
            watcher: &watcher,
            stop,
        };
        let outcome = query.run().await;
        let printed = printed.lock().unwrap().clone();
        (outcome, printed)
    }

    /// Goal: a run can be paused while a query takes for ever. Method: one over pairs of three million numbers.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_query_that_takes_for_ever_is_dropped_when_it_is_asked_to_stop() {
        let stop = Stop::default();
        let asks = stop.clone();
        let mut asking = tokio::task::JoinSet::new();
        asking.spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            asks.request();
        });
        let sql = "SELECT sum(a.value * b.value) AS n \
                   FROM generate_series(1, 3000000) a, generate_series(1, 3000000) b";
        let (outcome, _) = run_until(sql, Expect::Any, &stop).await;
        assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
    }

    #[tokio::test]
    async fn an_expectation_that_holds_lets_the_run_go_on() {
        let (outcome, printed) = run("SELECT 7 AS n", Expect::Rows).await;
        outcome.unwrap();
        assert!(printed[0].contains("| 7 |"), "{printed:?}");
        run("SELECT 7 AS n WHERE false", Expect::NoRows).await.0.unwrap();
        run("SELECT 7 AS n WHERE false", Expect::Any).await.0.unwrap();
    }

    #[tokio::test]
    async fn a_broken_expectation_stops_and_shows_the_first_rows() {
        let sql = "SELECT value AS leaked FROM generate_series(1, 9)";
        let error = run(sql, Expect::NoRows).await.0.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("finds 9")
                && text.contains("leaked")
                && text.contains("… and 4 more rows"),
            "{text}"
        );
        assert!(error.hint().unwrap().contains("table `q`"));
        let error = run("SELECT 7 AS n WHERE false", Expect::Rows).await.0.unwrap_err();
        assert!(error.to_string().contains("finds none"), "{error}");
    }
}
