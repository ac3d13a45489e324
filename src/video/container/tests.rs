use super::*;

fn atom(kind: &[u8; 4], inner: &[u8]) -> Vec<u8> {
    [&(inner.len() as u32 + 8).to_be_bytes(), kind.as_slice(), inner].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

/// An MP4 of four samples of 10 ticks with B-frames. `edit` is the length in movie ticks and the start of its edit.
fn mp4(edit: [u32; 2]) -> Vec<u8> {
    let stts = atom(b"stts", &words(&[0, 1, 4, 10]));
    let ctts = atom(b"ctts", &words(&[0, 3, 1, 10, 1, 20, 2, 5]));
    let stbl = atom(b"stbl", &[stts, ctts].concat());
    let mdia = [
        atom(b"mdhd", &words(&[0, 0, 0, 100, 40])),
        atom(b"hdlr", &[words(&[0, 0]), b"vide".to_vec()].concat()),
        atom(b"minf", &stbl),
    ];
    let trak = [
        atom(b"tkhd", &words(&[0, 0, 0, 1])),
        atom(b"edts", &atom(b"elst", &words(&[0, 1, edit[0], edit[1], 0x10000]))),
        atom(b"mdia", &mdia.concat()),
    ];
    let moov = [atom(b"mvhd", &words(&[0, 0, 0, 1000])), atom(b"trak", &trak.concat())];
    [atom(b"ftyp", b"isom"), atom(b"moov", &moov.concat()), atom(b"mdat", &[7; 50])].concat()
}

fn of(bytes: &[u8]) -> Promise {
    read(&mut std::io::Cursor::new(bytes)).unwrap_or_default()
}

#[test]
fn frames_outside_an_mp4_s_edit_are_not_promised() {
    // The samples are shown at 10, 30, 25 and 35.
    assert_eq!(of(&mp4([400, 10])).frames, Some(4));
    assert_eq!(of(&mp4([400, 20])).frames, Some(3));
    assert_eq!(of(&mp4([200, 10])).frames, Some(2));
    assert_eq!(of(&mp4([0, 10])).frames, Some(4));
    let whole = mp4([400, 10]);
    assert_eq!(of(&whole).faults, Vec::<String>::new());
    let cut = of(&whole[..whole.len() - 1]);
    assert_eq!((cut.frames, cut.faults.len()), (Some(4), 1));
}

/// Each fragment is complete, but the index lists more of them.
#[test]
fn an_mp4_that_ends_between_two_fragments_is_cut_short() {
    let moov = mp4([0, 10]);
    let fragment = |first: u8| [atom(b"moof", &[first; 12]), atom(b"mdat", &[first; 30])].concat();
    let sizes = [fragment(1).len() as u32, fragment(2).len() as u32];
    for (version, times) in [(0, &[0, 0][..]), (1 << 24, &[0, 0, 0, 0])] {
        let reference = |size: u32| words(&[size, 10, 0]);
        let head = [words(&[version, 1, 100]), words(times), words(&[2])].concat();
        let index = atom(b"sidx", &[head, reference(sizes[0]), reference(sizes[1])].concat());
        let whole = [moov.clone(), index, fragment(1), fragment(2)].concat();
        assert_eq!(of(&whole).faults, Vec::<String>::new());
        let cut = of(&whole[..whole.len() - fragment(2).len()]);
        assert!(cut.faults.len() == 1 && cut.faults[0].contains("cut short"), "{:?}", cut.faults);
    }
}

/// Without an index, missing fragments are detected by their numbers, the stated duration and the closing table.
#[test]
fn missing_fragments_are_detected_by_number_or_duration_and_an_open_end_is_noted() {
    let moov = mp4([0, 10]);
    let fragment = |number: u32| {
        let header = atom(b"mfhd", &words(&[0, number]));
        [atom(b"moof", &header), atom(b"mdat", &[7; 30])].concat()
    };
    let joined =
        |numbers: &[u32]| [moov.clone(), numbers.iter().flat_map(|n| fragment(*n)).collect()].concat();
    let open = of(&joined(&[1, 2, 3]));
    assert!(
        open.faults.is_empty() && open.notes.len() == 1 && open.notes[0].contains("no index"),
        "{open:?}"
    );
    let closed = of(&[joined(&[1, 2, 3]), atom(b"mfra", &[])].concat());
    assert!(closed.faults.is_empty() && closed.notes.is_empty(), "{closed:?}");
    assert_eq!(of(&joined(&[1, 2, 5, 6])).faults, ["2 fragments are missing"]);
    // In a joined recording the numbers start again.
    assert_eq!(of(&joined(&[7, 8, 1, 2])).faults, Vec::<String>::new());
    // The duration is 2.5 s in the movie's time scale.
    let duration = atom(b"mvex", &atom(b"mehd", &words(&[0, 2500])));
    let begin = moov.windows(4).position(|w| w == b"moov").unwrap() - 4;
    let size = u32::from_be_bytes(moov[begin..begin + 4].try_into().unwrap()) as usize;
    let movie = atom(b"moov", &[&moov[begin + 8..begin + size], &duration].concat());
    let whole = of(&[&moov[..begin], &movie, &fragment(1)].concat());
    assert_eq!((whole.seconds, whole.notes.len()), (Some(2.5), 0), "{whole:?}");
}

/// Fuzzing found tables of many runs, which took long to count.
#[test]
fn an_impossible_number_of_frames_is_ignored() {
    let mut many = mp4([400, 10]);
    let at = many.windows(4).position(|w| w == b"stts").unwrap() + 12;
    many[at..at + 4].copy_from_slice(&(1u32 << 26).to_be_bytes());
    assert!(of(&many).frames.is_some_and(|frames| frames < 1 << 26));
    many[at..at + 4].copy_from_slice(&(1u32 << 26 | 1).to_be_bytes());
    assert_eq!(of(&many).frames, None);
}

#[test]
fn cut_and_altered_files_are_read_without_a_panic() {
    let matroska = [
        &[0x1a, 0x45, 0xdf, 0xa3, 0x80][..],
        &[0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x15, 0x49, 0xa9, 0x66, 0x87, 0x44, 0x89, 0x84, 0x43, 0x7a, 0, 0],
        &[0x1f, 0x43, 0xb6, 0x75, 0x83, 0xe7, 0x81, 0],
    ]
    .concat();
    assert_eq!(of(&matroska), Promise { seconds: Some(0.25), ..Promise::default() });
    let mut strh = [b"strh".as_slice(), &56u32.to_le_bytes(), b"vids"].concat();
    strh.extend([0u32, 0, 0, 0, 1, 25, 0, 50].iter().flat_map(|v| v.to_le_bytes()));
    let avi = [b"RIFF".as_slice(), &(strh.len() as u32 + 4).to_le_bytes(), b"AVI ", &strh].concat();
    assert_eq!(of(&avi), Promise { seconds: Some(2.0), ..Promise::default() });
    let packet = |n: u8| [[0x47, 1, 0, 0x10 | n].as_slice(), &[0; 184]].concat();
    let transport = [packet(0), packet(1), packet(2)].concat();
    assert_eq!(of(&transport), Promise::default());
    assert_eq!(of(&[packet(0), packet(1), packet(4)].concat()).faults.len(), 1);
    for whole in [mp4([400, 10]), matroska, avi, transport] {
        for at in 0..whole.len() {
            of(&whole[..at]);
            for value in [0, 0x7f, 0xff] {
                let mut altered = whole.clone();
                altered[at] = value;
                of(&altered);
            }
        }
    }
}

/// Complete files, and the ends of their packets: a cut at any other byte must be reported.
fn chains() -> Vec<(&'static str, Vec<u8>, Vec<usize>)> {
    let asf = |object: &[u8], size: u64| {
        [&[0x30, 0x26, 0xb2, 0x75][..], &[7; 12], &(24 + size).to_le_bytes()[..], object].concat()
    };
    let flv =
        |size: u8| [&[9, 0, 0, size][..], &[0; 7], &vec![5; size.into()], &[0, 0, 0, size + 11]].concat();
    let mxf = |size: u8| {
        [&[6, 0x0e, 0x2b, 0x34][..], &[1; 12], &[0x83, 0, 0, size], &vec![3; size.into()]].concat()
    };
    let page = |number: u32, last: u8| {
        [b"OggS\0", &[last][..], &[0; 8], b"abcd", &number.to_le_bytes(), &[0; 4], &[2, 9, 3], &[8; 12]]
            .concat()
    };
    let pack = [&[0, 0, 1, 0xba, 0x44][..], &[0; 8], &[0xf8], &[0, 0, 1, 0xe0, 0, 20], &[4; 20]].concat();
    let dv = [&[0x1f, 7, 0, 0xbf][..], &[0; 143_996]].concat();
    vec![
        ("ASF", [asf(&[1; 40], 40), asf(&[1; 9], 9)].concat(), vec![64]),
        ("FLV", [&b"FLV\x01\x01\0\0\0\x09\0\0\0\0"[..], &flv(30), &flv(20)].concat(), vec![13, 58]),
        ("MXF", [mxf(30), mxf(40)].concat(), vec![50]),
        ("Ogg", [page(0, 2), page(1, 0), page(2, 4)].concat(), vec![]),
        ("MPEG-PS", [pack.clone(), pack].concat(), vec![14, 40, 54]),
        ("DV", dv, vec![]),
    ]
}

#[test]
fn broken_chains_of_packets_are_reported() {
    for (kind, whole, ends) in chains() {
        assert_eq!(of(&whole).faults, Vec::<String>::new(), "{kind}");
        let step = whole.len().div_ceil(300);
        for to in (30..whole.len()).step_by(step).filter(|to| !ends.contains(to)) {
            let faults = of(&whole[..to]).faults;
            assert!(faults.iter().any(|fault| fault.contains("cut short")), "{kind} to {to}: {faults:?}");
        }
    }
    let page = |all: &[u8], i: usize| all[41 * i..][..41].to_vec();
    let ogg = chains().swap_remove(3).1;
    let faults = of(&[page(&ogg, 0), page(&ogg, 2)].concat()).faults;
    assert!(faults.iter().any(|fault| fault.contains("1 pages are missing")), "{faults:?}");
    let mut program = chains().swap_remove(4).1;
    program.extend(program.clone());
    program[44..50].fill(0xff);
    let faults = of(&program).faults;
    assert!(faults.iter().any(|fault| fault.contains("damaged in 1 places")), "{faults:?}");
}

#[test]
fn an_mp4_without_its_table_cannot_be_decoded() {
    let whole = mp4([400, 10]);
    assert_eq!(of(&whole).hopeless, None);
    for part in [[atom(b"ftyp", b"isom"), atom(b"mdat", &[7; 50])].concat(), whole[..60].to_vec()] {
        assert!(of(&part).hopeless.is_some_and(|reason| reason.contains("moov")));
    }
}

/// An EBML element with a size of 8 bytes.
fn element(id: &[u8], inner: &[u8]) -> Vec<u8> {
    [id, &(1u64 << 56 | inner.len() as u64).to_be_bytes(), inner].concat()
}

#[test]
fn broken_chains_within_matroska_s_clusters_are_reported() {
    let block = element(&[0xa3], &[5; 40]);
    let group = element(&[0xa0], &element(&[0xa1], &[6; 30]));
    let cluster = element(&[0x1f, 0x43, 0xb6, 0x75], &[block.clone(), group, block].concat());
    let segment = element(&[0x18, 0x53, 0x80, 0x67], &[cluster.clone(), cluster].concat());
    let whole = [element(&[0x1a, 0x45, 0xdf, 0xa3], &[]), segment].concat();
    assert_eq!(of(&whole), Promise::default());
    // Data after the segment do not belong to it.
    assert_eq!(of(&[whole.as_slice(), &[0; 500]].concat()).faults, Vec::<String>::new());
    let mut holed = whole.clone();
    holed[60..100].fill(0);
    let faults = of(&holed).faults;
    assert!(faults[0].contains("damaged at byte"), "{faults:?}");
}

#[test]
fn broken_chains_of_avi_s_chunks_are_reported() {
    let chunk = |name: &[u8], inner: &[u8]| {
        [name, &(inner.len() as u32).to_le_bytes(), inner, &vec![0; inner.len() % 2]].concat()
    };
    let frames = [chunk(b"00dc", &[7; 31]), chunk(b"01wb", &[0; 12]), chunk(b"00dc", &[8; 40])].concat();
    let movi = chunk(b"LIST", &[b"movi".as_slice(), &frames].concat());
    let lists = [chunk(b"LIST", b"hdrlxxxx"), movi, chunk(b"idx1", &[0; 16])].concat();
    let whole = chunk(b"RIFF", &[b"AVI ".as_slice(), &lists].concat());
    assert_eq!(of(&whole), Promise::default());
    let at = whole.windows(4).position(|w| w == b"01wb").unwrap();
    let mut holed = whole.clone();
    holed[at - 10..at + 6].fill(0);
    let faults = of(&holed).faults;
    assert!(faults[0].contains(&format!("damaged at byte {at}")), "{faults:?}");
    // A chunk that is not padded to an even length.
    let mut unfilled = whole.clone();
    unfilled.remove(at - 1);
    let length = unfilled.len() as u32 - 8;
    unfilled[4..8].copy_from_slice(&length.to_le_bytes());
    assert_eq!(of(&unfilled).faults, Vec::<String>::new());
}

/// FFmpeg and GStreamer leave the sizes open in a pipe, and FFmpeg writes an impossible number of frames.
#[test]
fn an_avi_written_to_a_pipe_is_checked_only_for_complete_chunks() {
    let chunk = |name: &[u8; 4], size: u32, inner: &[u8]| [name, &size.to_le_bytes()[..], inner].concat();
    let values = [0u32, 0, 0, 0, 1, 25, 0, 1 << 30].map(u32::to_le_bytes).concat();
    let header = chunk(b"strh", 36, &[b"vids", values.as_slice()].concat());
    let frame = chunk(b"00dc", 30, &[7; 30]);
    for open in [0, u32::MAX] {
        let movi = chunk(b"LIST", open.max(4), &[b"movi", frame.repeat(2).as_slice()].concat());
        let whole = chunk(b"RIFF", open, &[b"AVI ", header.as_slice(), &movi].concat());
        assert_eq!(of(&whole), Promise::default());
        let faults = of(&whole[..whole.len() - 5]).faults;
        assert!(faults.len() == 1 && faults[0].contains("cut short"), "{faults:?}");
    }
}

#[test]
fn asf_packets_and_dv_frames_with_holes_are_counted() {
    let object = |guid: &[u8], inner: &[u8]| [guid, &(24 + inner.len() as u64).to_le_bytes(), inner].concat();
    let guid = |first: u8| [&[first, 0x26, 0xb2, 0x75][..], &[9; 12]].concat();
    let properties: [u8; 16] =
        [0xa1, 0xdc, 0xab, 0x8c, 0x47, 0xa9, 0xcf, 0x11, 0x8e, 0xe4, 0, 0xc0, 0x0c, 0x20, 0x53, 0x65];
    let sizes = [100u32.to_le_bytes(), 100u32.to_le_bytes()].concat();
    let header = object(&guid(0x30), &object(&properties, &[&[0; 68], &sizes[..]].concat()));
    // With and without data for error correction.
    for begins in
        [[[0x82, 0, 0]; 5], [[0x51, 0x5d, 1], [0x59, 0x5d, 2], [0x51, 0x5d, 3], [0x51, 0x5d, 4], [0x5d; 3]]]
    {
        let packets: Vec<u8> = begins.iter().flat_map(|begin| [&begin[..], &[3; 97]].concat()).collect();
        let data = object(&guid(0x36), &[&[0; 26][..], &packets].concat());
        let mut whole = [header.clone(), data].concat();
        assert_eq!(of(&whole).faults, Vec::<String>::new());
        let end = whole.len();
        whole[end - 250..end - 150].fill(0);
        assert_eq!(of(&whole).faults, ["1 packets are damaged: frames may be missing"]);
    }

    let frame = [&[0x1f, 7, 0, 0x3f][..], &vec![1; 119_996]].concat();
    let mut dv = frame.repeat(3);
    assert_eq!(of(&dv), Promise::default());
    dv[119_000..121_000].fill(0);
    assert_eq!(of(&dv).faults, ["1 of 3 frames are damaged at their start"]);
    let cut = of(&dv[..250_000]);
    assert_eq!((cut.usable, cut.hopeless), (Some(240_000), None));
}
