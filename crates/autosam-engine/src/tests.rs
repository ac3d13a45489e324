use super::*;
use autosam_frame::Rect;
use autosam_frame::map::ProbMap;
use autosam_frame::resize::InputSize;
use image::RgbImage;
use std::sync::Mutex;

type Script = Box<dyn FnMut(&ModelInput) -> Result<u8> + Send>;

/// Returns a flat map with the value from its script.
struct Scripted(Script);

impl Segmenter for Scripted {
    fn input_size(&self) -> InputSize {
        16.into()
    }
    fn segment(&mut self, input: &ModelInput, out: &mut ProbMap) -> Result<()> {
        let value = (self.0)(input)?;
        *out = ProbMap {
            width: input.width,
            height: input.height,
            data: vec![value; input.width * input.height],
        };
        Ok(())
    }
}

fn engine(make: impl FnMut() -> Script + Send + 'static) -> (Engine, Arc<Mutex<Vec<String>>>) {
    engine_that_rests(SHORTEST_PAUSE, make)
}

/// An engine that reloads its model `pause` after the first failure.
fn engine_that_rests(
    pause: Duration,
    mut make: impl FnMut() -> Script + Send + 'static,
) -> (Engine, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hears = told.clone();
    let handler = move |event| {
        hears.lock().unwrap().push(match event {
            Event::Detected(d) => format!("detected {:?}", d.pts),
            Event::Failed(e) => format!("failed: {e}"),
            Event::Recovered => "recovered".to_owned(),
            Event::Prompted(_) => "prompted".to_owned(),
        });
    };
    let factory: ModelFactory = Box::new(move || Ok(Box::new(Scripted(make()))));
    (Engine::with(Some(factory), Settings::default(), Box::new(handler), pause).unwrap(), told)
}

/// A model with its own thread, which reports its niceness.
#[cfg(target_os = "linux")]
struct Threaded(Arc<Mutex<Vec<i32>>>);

#[cfg(target_os = "linux")]
impl Segmenter for Threaded {
    fn input_size(&self) -> InputSize {
        16.into()
    }
    fn on_each_thread(&self, f: &(dyn Fn() + Sync)) {
        let nice = || {
            f();
            rustix::process::getpriority_process(None).unwrap()
        };
        let nice = std::thread::scope(|scope| scope.spawn(nice).join().unwrap());
        self.0.lock().unwrap().push(nice);
    }
    fn segment(&mut self, _: &ModelInput, _: &mut ProbMap) -> Result<()> {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_s_threads_run_at_lower_priority() {
    let found: Arc<Mutex<Vec<i32>>> = Arc::default();
    let nice = found.clone();
    let factory = move || -> ModelFactory {
        let nice = nice.clone();
        Box::new(move || Ok(Box::new(Threaded(nice.clone()))))
    };
    let engine = Engine::start(factory(), Settings::default(), Box::new(|_| ())).unwrap();
    let (done, replaced) = bounded(1);
    engine.control().replace(factory(), Box::new(move |result| done.send(result).unwrap()));
    replaced.recv().unwrap().unwrap();
    assert_eq!(*found.lock().unwrap(), [10, 10], "of the first model and of the one in its place");
}

fn frame(value: u8) -> RgbImage {
    RgbImage::from_pixel(32, 20, image::Rgb([value; 3]))
}

#[test]
fn a_frame_gets_its_own_mask() {
    let (mut engine, _) = engine(|| Box::new(|s| Ok(s.rgb[0])));
    for value in [0, 220, 90] {
        let image = frame(value);
        let d = engine.segment(&Frame::rgb_image(&image), Some(7)).unwrap();
        assert_eq!((d.mask.map.width, d.mask.map.height, d.mask.map.data[0]), (16, 10, value));
        assert_eq!(d.mask.regions.len(), usize::from(value >= 128));
        assert_eq!(d.pts, Some(7));
    }
    let stats = engine.control().stats();
    assert_eq!((stats.frames, stats.inferred, stats.skipped, stats.pending), (3, 3, 0, 0));
}

/// A model that waits for a token before each mask.
fn gated() -> (Engine, Sender<()>, Arc<Mutex<Vec<String>>>) {
    let (go, gate) = bounded::<()>(10);
    let (engine, told) = engine(move || {
        let gate = gate.clone();
        Box::new(move |s| {
            let _ = gate.recv();
            Ok(s.rgb[0])
        })
    });
    (engine, go, told)
}

fn wait(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_newest_frame_wins_and_the_others_are_counted() {
    let (mut engine, go, told) = gated();
    engine.try_submit(&Frame::rgb_image(&frame(1)), Some(0)).unwrap();
    wait(|| engine.control.waiting.is_empty()); // the worker holds frame 0
    for i in 1..=8 {
        engine.try_submit(&Frame::rgb_image(&frame(200)), Some(i)).unwrap();
    }
    assert_eq!(engine.control().stats().skipped, 7);
    go.send(()).unwrap();
    go.send(()).unwrap();
    wait(|| engine.control().stats().inferred == 2);
    assert_eq!(*told.lock().unwrap(), ["detected Some(0)", "detected Some(8)"]);
    wait(|| engine.latest().is_some_and(|d| d.pts == Some(8)));
    let s = engine.control().stats();
    assert_eq!(s.frames, s.inferred + s.skipped + s.errors);
}

#[test]
fn a_flush_discards_masks_and_frames() {
    let (mut engine, go, _) = gated();
    go.send(()).unwrap();
    engine.segment(&Frame::rgb_image(&frame(200)), None).unwrap();
    assert!(engine.latest().is_some());
    engine.try_submit(&Frame::rgb_image(&frame(200)), Some(1)).unwrap();
    wait(|| engine.control.waiting.is_empty());
    engine.try_submit(&Frame::rgb_image(&frame(200)), Some(2)).unwrap();
    engine.control().flush();
    assert!(engine.latest().is_none());
    go.send(()).unwrap();
    wait(|| engine.control().stats().inferred == 2);
    assert!(engine.latest().is_none(), "a mask from before the flush is shown");
    assert_eq!(engine.control().stats().skipped, 1);
}

/// An engine whose first model panics and whose second works.
fn panics_once(pause: Duration) -> (Engine, Arc<Mutex<Vec<String>>>) {
    let mut opened = 0;
    engine_that_rests(pause, move || {
        opened += 1;
        let first = opened == 1;
        Box::new(move |s| {
            assert!(!first, "boom");
            Ok(s.rgb[0])
        })
    })
}

#[test]
fn a_panic_is_reported_and_the_model_is_reloaded() {
    let (mut engine, told) = panics_once(Duration::ZERO);
    let image = frame(200);
    let text = engine.segment(&Frame::rgb_image(&image), None).unwrap_err().to_string();
    assert!(text.contains("panicked: boom"), "{text}");
    engine.segment(&Frame::rgb_image(&image), None).unwrap();
    let told = told.lock().unwrap();
    assert!(told[0].starts_with("failed: the model panicked: boom"), "{told:?}");
    assert_eq!(told[1..], ["recovered", "detected None"]);
    let s = engine.control().stats();
    assert_eq!((s.frames, s.inferred, s.skipped, s.errors, s.restarts), (2, 1, 0, 1, 1));
}

#[test]
fn a_failed_model_is_reloaded_after_a_pause() {
    let (mut engine, told) = panics_once(Duration::from_secs(3600));
    let image = frame(200);
    engine.segment(&Frame::rgb_image(&image), None).unwrap_err();
    let error = engine.segment(&Frame::rgb_image(&image), None).unwrap_err();
    assert!(matches!(&error, Error::Engine(text) if text.contains("paused")), "{error}");
    assert_eq!(told.lock().unwrap().len(), 1);
    let s = engine.control().stats();
    assert_eq!((s.frames, s.inferred, s.skipped, s.errors, s.restarts), (2, 0, 1, 1, 0));
}

#[test]
fn a_model_that_cannot_be_loaded_is_an_error_at_start() {
    let factory: ModelFactory = Box::new(|| Err(Error::weights("x.safetensors", "truncated")));
    let result = Engine::start(factory, Settings::default(), Box::new(|_| ()));
    assert!(result.err().unwrap().to_string().contains("x.safetensors: truncated"));
}

#[test]
fn model_inputs_are_reused() {
    let (mut engine, _) = engine(|| Box::new(|s| Ok(s.rgb[0])));
    for _ in 0..20 {
        engine.segment(&Frame::rgb_image(&frame(9)), None).unwrap();
    }
    assert!(engine.spare.len() <= 1, "{} model inputs for one frame at a time", engine.spare.len());
}

/// A model of the given input size that returns a flat map.
fn flat(size: usize, value: u8) -> Box<dyn Segmenter> {
    struct Flat(usize, u8);
    impl Segmenter for Flat {
        fn input_size(&self) -> InputSize {
            self.0.into()
        }
        fn segment(&mut self, input: &ModelInput, out: &mut ProbMap) -> Result<()> {
            assert_eq!(input.width.max(input.height), self.0, "an input for another model");
            let data = vec![self.1; input.width * input.height];
            *out = ProbMap { width: input.width, height: input.height, data };
            Ok(())
        }
    }
    Box::new(Flat(size, value))
}

/// A [`Done`] that sends its result as text.
fn ear() -> (Done, Receiver<String>) {
    let (say, heard) = bounded(1);
    let done = move |r: Result<()>| say.send(r.map_or_else(|e| e.to_string(), |()| "ok".to_owned())).unwrap();
    (Box::new(done), heard)
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_model_is_replaced_between_frames_and_stays_if_the_new_one_fails() {
    let mut engine =
        Engine::start(Box::new(|| Ok(flat(16, 10))), Settings::default(), Box::new(|_| ())).unwrap();
    let image = frame(7);
    let mut value = || engine.segment(&Frame::rgb_image(&image), None).unwrap().mask.map.data[0];
    assert_eq!(value(), 10);
    let control = engine.control().clone();
    let mut value = || engine.segment(&Frame::rgb_image(&image), None).unwrap().mask.map.data[0];
    let (done, heard) = ear();
    control.replace(Box::new(|| Err(Error::weights("new.safetensors", "truncated"))), done);
    assert!(heard.recv_timeout(SOON).unwrap().contains("new.safetensors: truncated"));
    let (done, heard) = ear();
    control.replace(Box::new(|| panic!("boom")), done);
    assert!(heard.recv_timeout(SOON).unwrap().contains("panicked: boom"));
    assert_eq!(value(), 10);
    // A model of another input size, while frames keep arriving: each still gets a mask.
    let (done, heard) = ear();
    control.replace(Box::new(|| Ok(flat(24, 20))), done);
    let mut seen = vec![value()];
    while seen.last() != Some(&20) {
        seen.push(value());
    }
    assert_eq!(heard.recv_timeout(SOON).unwrap(), "ok");
    assert!(seen.iter().all(|v| [10, 20].contains(v)));
    assert_eq!(engine.input_size(), Some(24.into()));
    let s = engine.control().stats();
    assert_eq!(
        (s.frames, s.inferred, s.skipped, s.errors),
        (2 + seen.len() as u64, 2 + seen.len() as u64, 0, 0)
    );
}

#[test]
fn frames_submitted_ahead_get_their_own_masks_in_order() {
    let (mut engine, go, _) = gated();
    // One with the worker, one in the queue; neither has a mask yet.
    let sent = [40, 200].map(|value| engine.submit(&Frame::rgb_image(&frame(value)), None).unwrap());
    assert_eq!(engine.control().stats().inferred, 0);
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(sent.map(|pending| pending.wait().unwrap().mask.map.data[0]), [40, 200]);
    // A flush drops waiting frames and reports it.
    let [first, second] = [7, 8].map(|value| engine.submit(&Frame::rgb_image(&frame(value)), None).unwrap());
    engine.control().flush();
    go.send(()).unwrap();
    assert!(first.wait().is_ok());
    let error = second.wait().unwrap_err();
    assert!(matches!(&error, Error::Engine(text) if text.contains("dropped by a flush")), "{error}");
}

#[test]
fn of_models_set_in_quick_succession_the_last_is_loaded() {
    let mut engine = Engine::without_model(Settings::default(), Box::new(|_| ())).unwrap();
    engine.try_submit(&Frame::rgb_image(&frame(7)), None).unwrap();
    assert!(engine.segment(&Frame::rgb_image(&frame(7)), None).is_err());
    let (go, gate) = bounded::<()>(1);
    let (enter, entered) = bounded::<()>(1);
    let (first, first_heard) = ear();
    engine.control().replace(
        Box::new(move || {
            enter.send(()).unwrap();
            let _ = gate.recv();
            Ok(flat(16, 1))
        }),
        first,
    );
    entered.recv_timeout(SOON).unwrap();
    let others: Vec<_> = (2..5)
        .map(|value| {
            let (done, heard) = ear();
            engine.control().replace(Box::new(move || Ok(flat(16, value))), done);
            heard
        })
        .collect();
    go.send(()).unwrap();
    assert_eq!(first_heard.recv_timeout(SOON).unwrap(), "ok");
    let last = others.last().unwrap().recv_timeout(SOON).unwrap();
    assert_eq!(last, "ok");
    for overtaken in &others[..2] {
        let text = overtaken.recv_timeout(SOON).unwrap();
        assert!(text.contains("another model was set"), "{text}");
    }
    assert_eq!(engine.segment(&Frame::rgb_image(&frame(7)), None).unwrap().mask.map.data[0], 4);
}

#[test]
fn an_engine_can_be_dropped_while_a_model_is_loading() {
    let engine = Engine::start(Box::new(|| Ok(flat(16, 10))), Settings::default(), Box::new(|_| ())).unwrap();
    let control = engine.control().clone();
    let (go, gate) = bounded::<()>(1);
    let (done, heard) = ear();
    let open = Box::new(move || {
        let _ = gate.recv();
        Ok(flat(16, 20))
    });
    control.replace(open, done);
    let ends = std::thread::spawn(move || drop(engine));
    go.send(()).unwrap();
    ends.join().unwrap();
    // Loading may end before or after the worker: either way the result is reported, or the model was on its way to the
    // ended worker.
    let _ = heard.try_recv();
    let (done, heard) = ear();
    control.replace(Box::new(|| Ok(flat(16, 30))), done);
    assert!(heard.recv_timeout(SOON).unwrap().contains("has stopped"));
}

#[test]
fn the_worker_s_time_on_one_frame_is_reported() {
    let (mut engine, go, _) = gated();
    assert_eq!(engine.control().busy(), None);
    engine.try_submit(&Frame::rgb_image(&frame(1)), None).unwrap();
    wait(|| engine.control().busy().is_some_and(|t| t > Duration::from_millis(20)));
    go.send(()).unwrap();
    wait(|| engine.control().busy().is_none());
}

#[test]
fn the_network_sees_the_crop_and_the_mask_covers_the_frame() {
    let (mut engine, _) = engine(|| Box::new(|s| Ok(s.rgb[0])));
    let mut image = frame(0);
    for (x, y) in (8..24).flat_map(|x| (4..12).map(move |y| (x, y))) {
        image.put_pixel(x, y, image::Rgb([250; 3]));
    }
    let part = CropMode::Rect(Rect { left: 8, top: 4, width: 16, height: 8 });
    for roi in [CropMode::Full, part, CropMode::Auto] {
        engine.control().set(Settings { roi, ..Settings::default() });
        let d = engine.segment(&Frame::rgb_image(&image), None).unwrap();
        let map = (d.mask.map.width, d.mask.map.height);
        if roi == CropMode::Full {
            assert!(map == (16, 10) && d.mask.regions.is_empty());
            continue;
        }
        // The crop is the square and up to two black pixels around it, since the model looks at one pixel.
        assert!(map.0 > 24 && map.0 <= 32 && map.1 > 15 && map.1 <= 20, "{roi:?}: {map:?}");
        if roi == part {
            let r = d.mask.regions[0];
            assert_eq!((r.left, r.top, r.right, r.bottom), (0.25, 0.2, 0.75, 0.6));
        }
    }
}

/// Textured tissue, `shift` pixels to the right.
fn tissue(shift: u32) -> RgbImage {
    RgbImage::from_fn(128, 96, |x, y| {
        let (x, y) = ((x + 60 - shift) as f32, y as f32);
        let v = 128.0 + 60.0 * (x * 0.21).sin() * (y * 0.17).cos() + 50.0 * (x * 0.07 + y * 0.11).sin();
        image::Rgb([v as u8; 3])
    })
}

/// A scene that has nothing to do with [`tissue`].
fn other_scene() -> RgbImage {
    RgbImage::from_fn(128, 96, |x, y| image::Rgb([((x * 7919 + y * 104_729) % 251) as u8; 3]))
}

#[test]
fn a_mask_follows_motion_but_not_into_another_scene() {
    let (mut engine, _) = engine(|| Box::new(|_| Ok(255)));
    engine.control().set(Settings { motion: Motion::On, ..Settings::default() });
    engine.segment(&Frame::rgb_image(&tissue(0)), None).unwrap();
    for (shift, want) in [(0, 0), (6, 6), (10, 10)] {
        let image = tissue(shift);
        engine.skip();
        let shown = engine.current_overlay(&Frame::rgb_image(&image)).unwrap();
        assert!(shown.shift.0.abs_diff(want) <= 1 && shown.shift.1.abs() <= 1, "{shift}: {:?}", shown.shift);
    }
    engine.skip();
    assert!(engine.current_overlay(&Frame::rgb_image(&other_scene())).is_none());
}

#[test]
fn the_first_frame_after_a_scene_change_has_no_old_mask() {
    for (motion, shown) in [(Motion::Auto, false), (Motion::On, false), (Motion::Off, true)] {
        let (mut engine, _) = engine(|| Box::new(|_| Ok(255)));
        engine.control().set(Settings { motion, ..Settings::default() });
        engine.segment(&Frame::rgb_image(&tissue(0)), None).unwrap();
        engine.skip();
        let overlay = engine.current_overlay(&Frame::rgb_image(&other_scene()));
        assert_eq!(overlay.is_some(), shown, "{motion:?}");
    }
}

#[test]
fn a_mask_stays_on_the_next_frame_unless_the_scene_changes() {
    for (shift, want) in [(0, 0), (1, 0), (10, 10)] {
        let (mut engine, _) = engine(|| Box::new(|_| Ok(255)));
        engine.control().set(Settings { motion: Motion::Auto, ..Settings::default() });
        engine.segment(&Frame::rgb_image(&tissue(0)), None).unwrap();
        engine.skip();
        let shown = engine.current_overlay(&Frame::rgb_image(&tissue(shift))).unwrap();
        assert!(shown.shift.0.abs_diff(want) <= 1 && shown.shift.1.abs() <= 1, "{shift}: {:?}", shown.shift);
    }
}

#[test]
fn frames_that_would_wait_are_skipped() {
    let ms = Duration::from_millis;
    // A frame every 16 ms and 50 ms per mask: a mask is drawn 64 ms after its frame, so a wait of up to 12 ms is free;
    // 2 ms are kept as a margin.
    let passed = |busy: u64| should_skip_frame(Some(ms(busy)), ms(50), ms(16));
    assert!(passed(0) && passed(37) && !passed(38) && !passed(49) && !passed(50) && !passed(400));
    // Drawn with the next frame, whether this frame waits or not.
    assert!(
        !should_skip_frame(Some(ms(3)), ms(10), ms(20)) && should_skip_frame(Some(ms(3)), ms(15), ms(20))
    );
    // No typical time yet, an idle worker, a first frame, or frames without an interval.
    assert!(!should_skip_frame(Some(ms(3)), Duration::ZERO, ms(16)));
    assert!(!should_skip_frame(None, ms(50), ms(16)));
    assert!(!should_skip_frame(Some(ms(3)), ms(50), Duration::MAX));
    assert!(!should_skip_frame(Some(ms(3)), ms(50), Duration::ZERO));
}
