//! A store behind the crate `object_store`, listed whole, in one piece.

use std::sync::Arc;

use ::object_store::path::Path;
use ::object_store::{Error, ObjectMeta};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tombstream_model::{Address, Listed, Listing, ListingError, ListingPart};

use super::sink::{ObjectStoreSink, failure};

/// Objects of a page.
const PAGE: usize = 1_000;

/// A store, as a listing.
#[derive(Clone, Debug)]
pub struct ObjectStoreListing {
    sink: Arc<ObjectStoreSink>,
}

/// All of it.
pub struct ObjectStorePart {
    bucket: Arc<str>,
    prefix: String,
    objects: BoxStream<'static, Result<ObjectMeta, Error>>,
    has_ended: bool,
}

impl ObjectStoreListing {
    /// A listing of what `sink` may destroy.
    pub fn new(sink: Arc<ObjectStoreSink>) -> Self {
        Self { sink }
    }
}

impl Listing for ObjectStoreListing {
    type Item = Listed;
    type Part = ObjectStorePart;

    async fn parts(&self, _: usize, _: &[Address]) -> Result<Vec<ObjectStorePart>, ListingError> {
        // A folder that is gone would be listed as empty.
        self.sink.check().await?;
        let prefix = self.sink.config.prefix.clone();
        // Whole segments only; what else the prefix leaves out is left out below.
        let folder = prefix.rsplit_once('/').map(|(folder, _)| Path::from(folder));
        Ok(vec![ObjectStorePart {
            bucket: self.sink.config.bucket.as_str().into(),
            prefix,
            objects: self.sink.store.list(folder.as_ref()),
            has_ended: false,
        }])
    }
}

impl ListingPart for ObjectStorePart {
    type Item = Listed;

    async fn next(&mut self) -> Result<Option<Vec<Listed>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let mut listed = Vec::with_capacity(PAGE);
        while listed.len() < PAGE {
            match self.objects.next().await {
                None => {
                    self.has_ended = true;
                    break;
                }
                Some(Ok(object)) => {
                    let key = object.location.as_ref();
                    if key.starts_with(&self.prefix) {
                        let (bucket, key) = (Arc::clone(&self.bucket), key.to_owned());
                        let address = Address::Object { bucket, key };
                        listed.push(Listed { address, fields: Vec::new() });
                    }
                }
                // The stream is not begun again where it broke, so this is the end of the run.
                Some(Err(error)) => {
                    let said = failure(error).to_string();
                    return Err(ListingError::NotWhole(format!("it broke off: {said}")));
                }
            }
        }
        Ok(Some(listed))
    }
}
