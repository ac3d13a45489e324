//! The processor's screen: a black border around the image, with text and boxes, without patient data.

use super::math::smoothstep;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Position of the image on the screen, and the elements next to it.
pub struct Screen {
    width: usize,
    height: usize,
    pub cx: f32,
    pub cy: f32,
    /// Half width and half height of the image in pixels.
    pub hx: f32,
    pub hy: f32,
    /// Corners: upper limit of |x|/hx + |y|/hy (1 is a diamond, 2 a rectangle).
    corner: f32,
    /// Radius of the round aperture in pixels.
    round: f32,
    /// Width of the aperture's edge in pixels.
    soft: f32,
    /// Colour of the border, 0..=255.
    black: [f32; 3],
    panel: Option<Panel>,
    lines: Vec<Line>,
    clock: u32,
    letter: f32,
    ink: f32,
}

/// A box in a corner, like a scope position display; it covers the image.
struct Panel {
    x0: f32,
    x1: f32,
    y0: f32,
    y1: f32,
    colour: [f32; 3],
    curve: bool,
    phase: f32,
}

struct Line {
    /// Position in letters from the top left corner.
    row: f32,
    text: String,
    /// Whether the line is a running clock.
    clock: bool,
}

impl Screen {
    pub fn new(rng: &mut ChaCha8Rng, width: usize, height: usize) -> Self {
        let (w, h) = (width as f32, height as f32);
        let mut screen = Self {
            width,
            height,
            cx: 0.5 * w,
            cy: 0.5 * h,
            hx: 0.5 * w,
            hy: 0.5 * h,
            corner: 2.0,
            round: f32::MAX,
            soft: rng.random_range(0.8..2.2) * h / 512.0,
            black: [0.0; 3],
            panel: None,
            lines: Vec::new(),
            clock: rng.random_range(60..3000),
            letter: h * rng.random_range(0.018..0.025),
            ink: rng.random_range(150.0..235.0),
        };
        let level: f32 = rng.random_range(0.0..14.0);
        screen.black = [level, level * rng.random_range(0.9..1.05), level * rng.random_range(0.9..1.1)];
        let mut text = false;
        match rng.random_range(0..10) {
            // An octagon in the middle.
            0..3 => {
                screen.hx = w * rng.random_range(0.41..0.48);
                screen.hy = h * rng.random_range(0.46..0.49);
                screen.corner = rng.random_range(1.62..1.8);
            }
            // A large octagon, cropped by the recording, with text over its corners.
            3..7 => {
                screen.hx = w * rng.random_range(0.5..0.53);
                screen.hy = h * rng.random_range(0.5..0.53);
                screen.cx += w * rng.random_range(-0.02..0.02);
                screen.corner = rng.random_range(1.38..1.6);
                text = rng.random_bool(0.75);
                if rng.random_bool(0.35) {
                    screen.panel = Some(Panel::new(rng, w, h, 0.0));
                }
            }
            // A rounded image on the right, text on the left.
            7..9 => {
                screen.hx = w * rng.random_range(0.37..0.41);
                screen.cx = w - screen.hx - w * rng.random_range(0.0..0.03);
                screen.hy = h * rng.random_range(0.44..0.5);
                screen.corner = rng.random_range(1.55..1.85);
                screen.round = screen.hx.max(screen.hy) * rng.random_range(1.0..1.25);
                text = true;
                if rng.random_bool(0.4) {
                    screen.panel = Some(Panel::new(rng, w, h, 0.0));
                }
            }
            // The whole screen with barely truncated corners.
            _ => screen.corner = rng.random_range(1.75..1.95),
        }
        if text {
            screen.write_lines(rng);
        }
        screen
    }

    fn write_lines(&mut self, rng: &mut ChaCha8Rng) {
        let mut row = rng.random_range(1.0..4.0);
        let mut add = |text: String, clock: bool, gap: f32| {
            self.lines.push(Line { row, text, clock });
            row += gap;
        };
        if rng.random_bool(0.5) {
            add("ID:SYNTHETIC".into(), false, 1.3);
            add("NAME:".into(), false, 2.6);
        }
        add("SEX:  AGE:".into(), false, 1.3);
        add("D.O.B.:".into(), false, 1.3);
        let (day, month) = (rng.random_range(1..29), rng.random_range(1..13));
        add(format!("{day:02}/{month:02}/{}", rng.random_range(2012..2025)), false, 1.3);
        add(String::new(), true, 3.5);
        add("###/###".into(), false, 1.3);
        add(format!("EH:A{} CM:{}", rng.random_range(0..9), rng.random_range(0..4)), false, 2.6);
        if rng.random_bool(0.4) {
            add("COMMENT:".into(), false, 1.3);
        }
    }

    /// Visible fraction of the pixel, 0 (border) to 1.
    pub fn aperture(&self, x: usize, y: usize) -> f32 {
        let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
        if self.panel.as_ref().is_some_and(|p| px > p.x0 && px < p.x1 && py > p.y0 && py < p.y1) {
            return 0.0;
        }
        let (dx, dy) = ((px - self.cx).abs(), (py - self.cy).abs());
        let sides = (dx - self.hx).max(dy - self.hy);
        let slope = (1.0 / (self.hx * self.hx) + 1.0 / (self.hy * self.hy)).sqrt();
        let corner = (dx / self.hx + dy / self.hy - self.corner) / slope;
        let round = (dx * dx + dy * dy).sqrt() - self.round;
        smoothstep(0.5 * self.soft, -0.5 * self.soft, sides.max(corner).max(round))
    }

    /// Draws the border, the box and the text around the image (`rgb`, 0..=255, `width * height`).
    pub fn compose(&self, rgb: &mut [[f32; 3]], aperture: &[f32], seconds: f32) {
        for (i, (pixel, &a)) in rgb.iter_mut().zip(aperture).enumerate() {
            if a >= 1.0 {
                continue;
            }
            let (x, y) = ((i % self.width) as f32 + 0.5, (i / self.width) as f32 + 0.5);
            let ground = match &self.panel {
                Some(p) if x > p.x0 && x < p.x1 && y > p.y0 && y < p.y1 => p.colour_at(x, y, self.black),
                _ => self.black,
            };
            for c in 0..3 {
                pixel[c] = ground[c] + (pixel[c] - ground[c]) * a;
            }
        }
        let clock = self.clock + seconds as u32;
        for line in &self.lines {
            if line.clock {
                let text = format!("{:02}:{:02}:{:02}", clock / 3600, clock / 60 % 60, clock % 60);
                self.print(rgb, line.row, &text);
            } else {
                self.print(rgb, line.row, &line.text);
            }
        }
    }

    fn print(&self, rgb: &mut [[f32; 3]], row: f32, text: &str) {
        // Letters of 5x7 dots in cells of 6x7.
        let dot = self.letter / 7.0;
        let (left, top) = (self.letter * 0.8, self.letter * row);
        let right = (left + 6.0 * dot * text.len() as f32).min(self.width as f32 - 1.0);
        let bottom = (top + self.letter).min(self.height as f32 - 1.0);
        for y in top as usize..=bottom as usize {
            for x in left as usize..=right as usize {
                let mut hits = 0;
                for (sx, sy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                    let (fx, fy) = ((x as f32 + sx - left) / dot, (y as f32 + sy - top) / dot);
                    if fx >= 0.0 && (0.0..7.0).contains(&fy) {
                        let (cell, column) = (fx as usize / 6, fx as usize % 6);
                        let letter = text.as_bytes().get(cell).copied().unwrap_or(b' ');
                        hits += (column < 5 && glyph(letter)[column] >> fy as usize & 1 == 1) as u32;
                    }
                }
                let share = hits as f32 / 4.0;
                for c in &mut rgb[y * self.width + x] {
                    *c += (self.ink - *c) * share;
                }
            }
        }
    }
}

impl Panel {
    fn new(rng: &mut ChaCha8Rng, w: f32, h: f32, x0: f32) -> Self {
        let green = rng.random_bool(0.5);
        Self {
            x0,
            x1: x0 + w * rng.random_range(0.2..0.33),
            y0: h * rng.random_range(0.64..0.74),
            y1: h + 1.0,
            colour: if green { [40.0, 178.0, 140.0] } else { [2.0; 3] },
            curve: green,
            phase: rng.random_range(0.0..6.0),
        }
    }

    /// The box's colour: flat, or with the scope drawn as a dark loop.
    fn colour_at(&self, x: f32, y: f32, black: [f32; 3]) -> [f32; 3] {
        if !self.curve {
            return black;
        }
        let (u, v) = ((x - self.x0) / (self.x1 - self.x0), (y - self.y0) / (self.y1 - self.y0));
        let bend = 0.5 + 0.28 * (v * 5.0 + self.phase).sin() * (1.2 - v);
        let line = smoothstep(0.035, 0.015, (u - bend).abs()) * smoothstep(0.15, 0.2, v);
        self.colour.map(|c| c * (1.0 - 0.75 * line))
    }
}

/// Columns of a 5x7 letter, top dot in the lowest bit; `#` is a filled square.
fn glyph(letter: u8) -> [u8; 5] {
    match letter {
        b'0' => [0x3e, 0x51, 0x49, 0x45, 0x3e],
        b'1' => [0x00, 0x42, 0x7f, 0x40, 0x00],
        b'2' => [0x42, 0x61, 0x51, 0x49, 0x46],
        b'3' => [0x21, 0x41, 0x45, 0x4b, 0x31],
        b'4' => [0x18, 0x14, 0x12, 0x7f, 0x10],
        b'5' => [0x27, 0x45, 0x45, 0x45, 0x39],
        b'6' => [0x3c, 0x4a, 0x49, 0x49, 0x30],
        b'7' => [0x01, 0x71, 0x09, 0x05, 0x03],
        b'8' => [0x36, 0x49, 0x49, 0x49, 0x36],
        b'9' => [0x06, 0x49, 0x49, 0x29, 0x1e],
        b'A' => [0x7e, 0x11, 0x11, 0x11, 0x7e],
        b'B' => [0x7f, 0x49, 0x49, 0x49, 0x36],
        b'C' => [0x3e, 0x41, 0x41, 0x41, 0x22],
        b'D' => [0x7f, 0x41, 0x41, 0x22, 0x1c],
        b'E' => [0x7f, 0x49, 0x49, 0x49, 0x41],
        b'G' => [0x3e, 0x41, 0x49, 0x49, 0x7a],
        b'H' => [0x7f, 0x08, 0x08, 0x08, 0x7f],
        b'I' => [0x00, 0x41, 0x7f, 0x41, 0x00],
        b'M' => [0x7f, 0x02, 0x0c, 0x02, 0x7f],
        b'N' => [0x7f, 0x04, 0x08, 0x10, 0x7f],
        b'O' => [0x3e, 0x41, 0x41, 0x41, 0x3e],
        b'S' => [0x46, 0x49, 0x49, 0x49, 0x31],
        b'T' => [0x01, 0x01, 0x7f, 0x01, 0x01],
        b'X' => [0x63, 0x14, 0x08, 0x14, 0x63],
        b'Y' => [0x07, 0x08, 0x70, 0x08, 0x07],
        b':' => [0x00, 0x36, 0x36, 0x00, 0x00],
        b'.' => [0x00, 0x60, 0x60, 0x00, 0x00],
        b'/' => [0x20, 0x10, 0x08, 0x04, 0x02],
        b'#' => [0x7e; 5],
        _ => [0; 5],
    }
}
