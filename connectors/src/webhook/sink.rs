//! The order: sort out what is never sent, ask the fence, post, match the answer item by item.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use reqwest::Url;
use sha2::{Digest as _, Sha256};
use tombstream_model::{Address, Outcome, Presence, Sink, SinkError, Target, Verdict};

use super::answer;
use super::client::{Action, Asked, Client};
use super::config::{WebhookConfig, WebhookConfigError};

/// A service of somebody else's, as a place to have copies destroyed.
pub struct WebhookSink {
    client: Client,
    url: Url,
    look_url: Option<Url>,
    config: WebhookConfig,
}

/// What a service said when nothing was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebhookFacts {
    /// Whether it can be asked whether a thing is there.
    pub looks: bool,
}

/// What is asked for one address of one claim; whoever is twice in a batch is asked for once.
struct Question<'a> {
    asked: Asked<'a>,
    places: Vec<usize>,
    until: Instant,
}

impl WebhookSink {
    /// Makes the sink. Nothing is sent yet.
    pub fn new(config: WebhookConfig) -> Result<Self, WebhookConfigError> {
        let client = Client::new(&config)?;
        let parse = |url: &String| Url::parse(url).expect("validated");
        let (url, look_url) = (parse(&config.url), config.look_url.as_ref().map(parse));
        Ok(Self { client, url, look_url, config })
    }

    /// Asks for nothing, at each address: that it answers, and knows the secret.
    pub async fn check(&self) -> Result<WebhookFacts, SinkError> {
        let body = self.client.post(&self.url, Action::Destroy, &[], None).await?;
        answer::outcomes(&body, &[])?;
        if let Some(url) = &self.look_url {
            let body = self.client.post(url, Action::Look, &[], None).await?;
            answer::presences(&body, &[])?;
        }
        Ok(WebhookFacts { looks: self.look_url.is_some() })
    }

    /// Why an address is never sent (S8).
    fn problem(&self, address: &Address) -> Option<&'static str> {
        match address {
            Address::Item { collection, .. } if **collection != *self.config.collection => {
                Some("not sent: its collection is not this store's")
            }
            Address::Item { id, .. } if id.is_empty() => Some("not sent: an empty id"),
            Address::Item { .. } => None,
            Address::Object { .. }
            | Address::Prefix { .. }
            | Address::Document { .. }
            | Address::Field { .. }
            | Address::Row { .. } => Some("not sent: not an address of a webhook"),
        }
    }

    /// The questions of `places`, each once.
    fn questions<'a>(&'a self, batch: &'a [Target], places: &[usize]) -> Vec<Question<'a>> {
        let mut questions: Vec<Question<'a>> = Vec::with_capacity(places.len());
        let mut known: HashMap<String, usize> = HashMap::with_capacity(places.len());
        for &place in places {
            let target = &batch[place];
            let id = name(target);
            if let Some(&at) = known.get(&id) {
                questions[at].places.push(place);
                questions[at].until = questions[at].until.min(target.fence.until);
                continue;
            }
            known.insert(id.clone(), questions.len());
            let asked = Asked {
                id,
                deletion: target.deletion,
                store: &self.config.store,
                address: &target.address,
            };
            questions.push(Question { asked, places: vec![place], until: target.fence.until });
        }
        questions
    }

    /// Posts one part of a batch; `until` bounds the wait of what destroys.
    async fn ask(
        &self,
        url: &Url,
        action: Action,
        part: &[Question<'_>],
    ) -> Result<Vec<u8>, SinkError> {
        let asked: Vec<Asked<'_>> = part.iter().map(|question| question.asked.clone()).collect();
        let until = part.iter().map(|question| question.until).min();
        let until = until.filter(|_| action == Action::Destroy);
        self.client.post(url, action, &asked, until).await
    }
}

impl Sink for WebhookSink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        let mut outcomes: Vec<Option<Outcome>> = batch
            .iter()
            .map(|target| self.problem(&target.address))
            .map(|problem| problem.map(|said| Outcome::new(Verdict::Refused, said)))
            .collect();
        let open: Vec<usize> =
            (0..batch.len()).filter(|&place| outcomes[place].is_none()).collect();
        let mut answered = false;
        for part in open.chunks(self.config.items_max.get()) {
            // Invariant (S1): what is posted is deleted by whoever reads it, so the fence is asked last;
            // conformance: `a_target_whose_fence_is_over_is_not_touched`.
            let (part, late): (Vec<usize>, Vec<usize>) =
                part.iter().partition(|&&place| batch[place].fence.holds());
            for place in late {
                outcomes[place] = Some(Outcome::new(Verdict::Busy, "lease over"));
            }
            if part.is_empty() {
                continue;
            }
            let questions = self.questions(batch, &part);
            let ids: Vec<&str> = questions.iter().map(|question| &*question.asked.id).collect();
            let answer = self.ask(&self.url, Action::Destroy, &questions).await;
            let said = match answer.and_then(|body| answer::outcomes(&body, &ids)) {
                Ok(said) => said,
                // Once a part was answered, its verdicts must not be lost with the rest.
                Err(error) if !answered => return Err(error),
                Err(error) => vec![soften(&error); questions.len()],
            };
            answered = true;
            for (question, said) in questions.iter().zip(said) {
                for &place in &question.places {
                    outcomes[place] = Some(said.clone());
                }
            }
        }
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("each has an answer")).collect())
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let mut found = vec![Presence::Unknown; batch.len()];
        let Some(url) = &self.look_url else { return Ok(found) };
        let sound = |place: &usize| self.problem(&batch[*place].address).is_none();
        let open: Vec<usize> = (0..batch.len()).filter(sound).collect();
        for part in open.chunks(self.config.items_max.get()) {
            let questions = self.questions(batch, part);
            let ids: Vec<&str> = questions.iter().map(|question| &*question.asked.id).collect();
            let body = self.ask(url, Action::Look, &questions).await?;
            for (question, presence) in questions.iter().zip(answer::presences(&body, &ids)?) {
                question.places.iter().for_each(|&place| found[place] = presence);
            }
        }
        Ok(found)
    }

    fn batch_max(&self) -> usize {
        self.config.items_max.get()
    }
}

impl fmt::Debug for WebhookSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSink").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What the service calls the question: the same for the same address under the same claim, however
/// often it is sent, and another after a takeover.
fn name(target: &Target) -> String {
    let address = serde_json::to_vec(&target.address).expect("JSON holds it");
    let digest = hex::encode(&Sha256::digest(address)[..8]);
    format!("{}.{}.{digest}", target.deletion, target.fence.token)
}

/// What an error means for the rest of a batch of which a part has been answered: ask again.
fn soften(error: &SinkError) -> Outcome {
    match error {
        SinkError::Throttled { retry_after } => {
            let mut outcome = Outcome::new(Verdict::Busy, "throttled");
            outcome.retry_after = *retry_after;
            outcome
        }
        SinkError::Unavailable(_) => Outcome::new(Verdict::Unknown, "no answer"),
        SinkError::Denied(said) | SinkError::Missing(said) | SinkError::Protocol(said) => {
            Outcome::new(Verdict::Unknown, said.clone())
        }
    }
}
