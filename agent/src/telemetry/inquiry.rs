//! Questions to the pipeline's thread: how is it going?

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Report;

/// Questions that may wait; more than a handful of askers is a mistake, and gets no answer.
const MOST_WAITING: usize = 8;
/// The pipeline looks for questions several times a second, unless it is overwhelmed.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The processes that are traced now.
    Present,
    /// Those, and once each the ones that have gone since the last question of this kind.
    Departed,
}

/// Asks. Clones ask the same pipeline.
#[derive(Clone, Debug)]
pub struct Inquirer(SyncSender<(Question, oneshot::Sender<Report>)>);

/// The pipeline's end.
#[derive(Debug)]
pub struct Questions(Receiver<(Question, oneshot::Sender<Report>)>);

/// Both ends.
pub fn channel() -> (Inquirer, Questions) {
    let (sender, receiver) = sync_channel(MOST_WAITING);
    (Inquirer(sender), Questions(receiver))
}

impl Inquirer {
    /// The answer; `None` if there is none in time, or the pipeline has ended.
    pub async fn ask(&self, question: Question) -> Option<Report> {
        let (sender, receiver) = oneshot::channel();
        self.0.try_send((question, sender)).ok()?;
        timeout(PATIENCE, receiver).await.ok()?.ok()
    }
}

impl Questions {
    /// Answers what was asked since the last call. Costs next to nothing when nothing was.
    pub fn answer(&self, mut report: impl FnMut(Question) -> Report) {
        while let Ok((question, sender)) = self.0.try_recv() {
            // Nobody waits any more for an answer that comes too late; what has departed is then not told twice.
            if !sender.is_closed() {
                let _ = sender.send(report(question));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_is_answered_once() {
        let (inquirer, questions) = channel();
        let pipeline = std::thread::spawn(move || {
            let mut asked = Vec::new();
            while asked.len() < 2 {
                questions.answer(|question| {
                    asked.push(question);
                    Report::new(42)
                });
                std::thread::yield_now();
            }
            asked
        });
        assert_eq!(inquirer.ask(Question::Present).await.map(|report| report.daemon), Some(42));
        assert_eq!(inquirer.ask(Question::Departed).await.map(|report| report.daemon), Some(42));
        assert_eq!(pipeline.join().unwrap(), [Question::Present, Question::Departed]);
        assert_eq!(inquirer.ask(Question::Present).await, None, "the pipeline has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipeline_that_does_not_answer_is_not_waited_for() {
        let (inquirer, questions) = channel();
        assert_eq!(inquirer.ask(Question::Present).await, None);
        questions.answer(|_| panic!("nobody waits for this answer"));
    }
}
