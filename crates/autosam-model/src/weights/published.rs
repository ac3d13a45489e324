//! The manifest: published weights that this project can load, where their authors keep them, and their hashes.

/// One published file.
#[derive(Debug, Clone, Copy)]
pub struct PublishedWeights {
    pub name: &'static str,
    pub file: &'static str,
    pub what: &'static str,
    /// The authors' page that links to the file.
    pub source: &'static str,
    pub url: &'static str,
    /// Its length in bytes, if published.
    pub bytes: Option<u64>,
    /// Its SHA-256 in hexadecimal. `None` if none was published; the hash of the first download is then stored and
    /// required from then on.
    pub sha256: Option<&'static str>,
}

/// The weights that `autosam-video models list` prints in addition to the shipped model.
///
/// Meta publishes no SHA-256 (the six digits in its file names begin the MD5). The hashes here are those that micro-sam
/// and 3D Slicer's Segment Anything extension use for the same addresses; MobileSAM's is micro-sam's too. HarDNet's
/// authors publish none, and the address in their code (ping-chao.com) is often unreachable, so the files in their
/// repository are used.
pub const PUBLISHED: &[PublishedWeights] = &[
    PublishedWeights {
        name: "sam-vit-b",
        file: "sam_vit_b_01ec64.pth",
        what: "Segment Anything, ViT-B, 1024 px",
        source: "github.com/facebookresearch/segment-anything",
        url: "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        bytes: Some(375_042_383),
        sha256: Some("ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    },
    PublishedWeights {
        name: "sam-vit-l",
        file: "sam_vit_l_0b3195.pth",
        what: "Segment Anything, ViT-L, 1024 px",
        source: "github.com/facebookresearch/segment-anything",
        url: "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        bytes: Some(1_249_524_607),
        sha256: Some("3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    },
    PublishedWeights {
        name: "sam-vit-h",
        file: "sam_vit_h_4b8939.pth",
        what: "Segment Anything, ViT-H, 1024 px",
        source: "github.com/facebookresearch/segment-anything",
        url: "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        bytes: Some(2_564_550_879),
        sha256: Some("a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    },
    PublishedWeights {
        name: "mobile-sam",
        file: "mobile_sam.pt",
        what: "MobileSAM, TinyViT-5M, 1024 px",
        source: "github.com/ChaoningZhang/MobileSAM",
        url: "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        bytes: Some(40_728_226),
        sha256: Some("6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"),
    },
    hardnet("hardnet-39ds", "hardnet39ds.pth", "HarDNet-39DS, ImageNet", {
        "https://github.com/PingoLH/Pytorch-HarDNet/raw/master/hardnet39ds.pth"
    }),
    hardnet("hardnet-68", "hardnet68.pth", "HarDNet-68, ImageNet", {
        "https://github.com/PingoLH/Pytorch-HarDNet/raw/master/hardnet68.pth"
    }),
    hardnet("hardnet-85", "hardnet85.pth", "HarDNet-85, ImageNet", {
        "https://github.com/PingoLH/Pytorch-HarDNet/raw/master/hardnet85.pth"
    }),
];

const fn hardnet(
    name: &'static str,
    file: &'static str,
    what: &'static str,
    url: &'static str,
) -> PublishedWeights {
    let source = "github.com/PingoLH/Pytorch-HarDNet";
    PublishedWeights { name, file, what, source, url, bytes: None, sha256: None }
}

/// The entry `name`.
pub fn find(name: &str) -> Option<&'static PublishedWeights> {
    PUBLISHED.iter().find(|k| k.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_can_be_found_and_fetched() {
        for (i, published) in PUBLISHED.iter().enumerate() {
            assert!(PUBLISHED[..i].iter().all(|k| k.name != published.name && k.file != published.file));
            assert!(
                published.url.starts_with("https://") && published.url.ends_with(published.file),
                "{}",
                published.url
            );
            assert!(
                published.sha256.is_none_or(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
            );
            assert_eq!(find(published.name).map(|k| k.file), Some(published.file));
        }
    }
}
