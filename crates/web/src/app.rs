//! What the routes share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::counters::Counters;
use crate::gallery::Gallery;
use crate::guard::Guard;
use crate::labels::{LabelFilter, ServedLabels};
use crate::limits::ServeLimits;
use crate::models::{ImageOutput, ImageWork, ServedModels};
use crate::problem::Problem;
use crate::queue::{InferenceQueue, JobFailure, QueueFull};

/// Says something to whoever runs the server.
pub type Note = Arc<dyn Fn(String) + Send + Sync>;

/// An image of a request.
#[derive(Clone, Debug)]
pub struct UploadedImage {
    /// Its key: the name of its file without extension, or its number.
    pub key: String,
    /// The encoded image.
    pub image: Bytes,
}

/// What the routes share.
pub struct App {
    /// What a request may take.
    pub limits: ServeLimits,
    /// Who may ask.
    pub guard: Guard,
    /// Images that wait for the model.
    pub queue: Arc<InferenceQueue>,
    /// What was done.
    pub counters: Arc<Counters>,
    /// The models.
    pub served: ServedModels,
    /// The gallery, once it is loaded.
    pub gallery: OnceLock<RwLock<Gallery>>,
    /// Number of images in it. A search holds the gallery for seconds; its size is known meanwhile.
    pub gallery_images: AtomicUsize,
    /// The labels.
    pub labels: Option<ServedLabels>,
    /// The folder of runs.
    pub runs: Option<PathBuf>,
    /// Bytes of bodies that may still be held.
    pub held: Arc<Semaphore>,
    /// Work on all processors beside that of the models: one at a time.
    pub search: Arc<Semaphore>,
    /// Says something to whoever runs the server.
    pub note: Note,
}

/// The application, as handlers get it.
pub type Shared = axum::extract::State<Arc<App>>;

impl App {
    /// When the answer to a request that came now has to be there.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.limits.seconds)
    }

    fn late(&self) -> Problem {
        Problem::busy(format!(
            "expected an answer within {} seconds, and there is none yet\nhint: ask for fewer images, or later",
            self.limits.seconds
        ))
    }

    fn gallery(&self) -> Result<&RwLock<Gallery>, Problem> {
        self.gallery
            .get()
            .ok_or_else(|| Problem::busy("the gallery is being loaded"))
    }

    /// Puts the loaded gallery in its place.
    pub fn set_gallery(&self, gallery: Gallery) {
        self.gallery_images.store(gallery.len(), Relaxed);
        let _ = self.gallery.set(RwLock::new(gallery));
    }

    /// Looks something up in the gallery, on a thread that may wait.
    ///
    /// # Errors
    /// The gallery is not loaded yet; what `look` returns.
    pub async fn with_gallery<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Gallery) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = Arc::clone(self);
        blocking(move || look(&read(app.gallery()?))).await
    }

    /// Changes the gallery, on a thread that may wait.
    ///
    /// # Errors
    /// The gallery is not loaded yet; what `change` returns.
    pub async fn change_gallery<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Gallery) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = Arc::clone(self);
        blocking(move || {
            let mut gallery = write(app.gallery()?);
            let changed = change(&mut gallery);
            app.gallery_images.store(gallery.len(), Relaxed);
            changed
        })
        .await
    }

    /// Searches the gallery, one search at a time: each uses all processors.
    ///
    /// # Errors
    /// As [`App::with_gallery`]; other searches take too long.
    pub async fn search_gallery<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Instant,
        search: impl FnOnce(&Gallery) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = timeout_at(deadline, Arc::clone(&self.search).acquire_owned()).await;
        let turn = turn.map_err(|_| self.late())?;
        let search = move |gallery: &Gallery| {
            // Held until the search ends, also after the client disconnected.
            let _turn = turn;
            search(gallery)
        };
        self.with_gallery(search).await
    }

    /// Computes images, all or none: their keys with the outputs, in order.
    ///
    /// # Errors
    /// No model for it, a full queue, an image that cannot be used, or no answer in time.
    pub async fn compute(
        &self,
        work: ImageWork,
        images: Vec<UploadedImage>,
        deadline: Instant,
    ) -> Result<Vec<(String, ImageOutput)>, Problem> {
        self.served.check(&work)?;
        let (keys, images): (Vec<String>, Vec<_>) =
            images.into_iter().map(|one| (one.key, one.image)).unzip();
        if images.len() > self.limits.queue {
            return Err(Problem::too_large(format!(
                "expected at most {} images at a time, found {}",
                self.limits.queue,
                images.len()
            )));
        }
        // Dropped after the receivers, also where the client leaves or the time is over: then the
        // images are not held any longer.
        let _end = ForgetAbandoned(&self.queue);
        let outputs = self
            .queue
            .add(work, images)
            .map_err(|QueueFull { limit }| {
                Problem::busy(format!(
                    "the queue of {limit} images is full\nhint: ask again later, or --max-queue"
                ))
            })?;
        let mut computed = Vec::with_capacity(keys.len());
        for (key, output) in keys.into_iter().zip(outputs) {
            // Where this returns early, the other receivers are dropped, and their images with them.
            let output = timeout_at(deadline, output)
                .await
                .map_err(|_| self.late())?;
            match output {
                Ok(Ok(output)) => computed.push((key, output)),
                Ok(Err(JobFailure::Image(error))) => return Err(Problem::of_image(&key, &error)),
                Ok(Err(JobFailure::Model(text))) => {
                    (self.note)(format!("a model failed: {text}"));
                    return Err(Problem::internal(
                        "the model failed; the log of the server says why",
                    ));
                }
                Err(_) => return Err(Problem::busy("the server stops")),
            }
        }
        Ok(computed)
    }

    /// The filter of `ATTRIBUTE:VALUE`s by the labels; none without any.
    ///
    /// # Errors
    /// No labels are served; an unknown attribute or value.
    pub fn filter<'a>(
        &self,
        texts: impl Iterator<Item = &'a str>,
    ) -> Result<Option<LabelFilter>, Problem> {
        let mut texts = texts.peekable();
        match texts.peek() {
            Some(_) => Ok(Some(self.labels()?.filter(texts)?)),
            None => Ok(None),
        }
    }

    /// Whether the image of a key passes a filter.
    pub fn passes(&self, key: &str, filter: Option<&LabelFilter>) -> bool {
        match (filter, &self.labels) {
            (Some(filter), Some(labels)) => labels.matches(key, filter),
            _ => true,
        }
    }

    /// The labels.
    ///
    /// # Errors
    /// 404: none are served.
    pub fn labels(&self) -> Result<&ServedLabels, Problem> {
        self.labels.as_ref().ok_or_else(|| {
            Problem::not_found("labels: none are served\nhint: start with --labels DIR")
        })
    }
}

/// Drops images whose request ended, when it is dropped.
struct ForgetAbandoned<'a>(&'a InferenceQueue);

impl Drop for ForgetAbandoned<'_> {
    fn drop(&mut self) {
        self.0.forget_abandoned();
    }
}

/// Runs work that may wait or compute on a thread for such work.
///
/// # Errors
/// What `work` returns; 500 where it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request failed; the log of the server says why",
        )),
    }
}

// Searches that panic leave the gallery as it was; a change that panics has not reached it yet, or
// has inserted what is on the disk.
fn read(gallery: &RwLock<Gallery>) -> RwLockReadGuard<'_, Gallery> {
    gallery.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(gallery: &RwLock<Gallery>) -> RwLockWriteGuard<'_, Gallery> {
    gallery.write().unwrap_or_else(PoisonError::into_inner)
}
