//! Published weights that this project can load, and where their authors keep them.

/// One published file.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub name: &'static str,
    pub file: &'static str,
    pub what: &'static str,
    /// The authors' page that links to the file.
    pub source: &'static str,
}

/// What `autosam-video models list` prints beside the shipped model.
pub const KNOWN: &[Known] = &[
    Known {
        name: "sam-vit-b",
        file: "sam_vit_b_01ec64.pth",
        what: "Segment Anything, ViT-B, 1024 px",
        source: "github.com/facebookresearch/segment-anything",
    },
    Known {
        name: "sam-vit-l",
        file: "sam_vit_l_0b3195.pth",
        what: "Segment Anything, ViT-L, 1024 px",
        source: "github.com/facebookresearch/segment-anything",
    },
    Known {
        name: "sam-vit-h",
        file: "sam_vit_h_4b8939.pth",
        what: "Segment Anything, ViT-H, 1024 px",
        source: "github.com/facebookresearch/segment-anything",
    },
    Known {
        name: "mobile-sam",
        file: "mobile_sam.pt",
        what: "MobileSAM, TinyViT-5M, 1024 px",
        source: "github.com/ChaoningZhang/MobileSAM",
    },
];
