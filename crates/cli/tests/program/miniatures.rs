//! Miniature copies of published datasets: their official folders and names, a few images of a few
//! pixels, and the traps that they are known for. MATLAB files and pickles are those that
//! `crates/data/tests/golden/{mat,pickles}.py` made.

use fs_err as fs;
use std::cell::Cell;
use std::path::{Path, PathBuf};

use clasp_data::image::{Rgb, encode_jpeg, encode_label_png, encode_png};

/// Makes all of them in a folder, each in one of its own.
pub fn make(root: &Path) {
    COLOR.set(0);
    market1501(&root.join("market"));
    duke(&root.join("duke"));
    cuhk03(&root.join("cuhk03"));
    msmt17(&root.join("msmt17"));
    pa100k(&root.join("pa100k"));
    peta(&root.join("peta"));
    rap2(&root.join("rap2"));
    split(&root.join("split"));
    lip(&root.join("lip"));
    cihp(&root.join("cihp"));
    atr(&root.join("atr"));
    ccp(&root.join("ccp"));
    coco(&root.join("coco"));
    citypersons(&root.join("citypersons"));
    cuhk_sysu(&root.join("cuhk-sysu"));
    prw(&root.join("prw"));
    tables(&root.join("tables"));
}

fn write(path: PathBuf, bytes: impl AsRef<[u8]>) {
    let folder = path.parent().expect("a folder");
    fs::create_dir_all(folder).expect("a folder");
    fs::write(path, bytes).expect("a file");
}

thread_local! {
    /// Of the image that was made last.
    static COLOR: Cell<u32> = const { Cell::new(0) };
}

/// An image of its own color, JPEG or PNG by its name.
fn image(path: PathBuf, [height, width]: [usize; 2]) {
    COLOR.set(COLOR.get() + 0x0001_0f35);
    let [_, r, g, b] = COLOR.get().to_be_bytes();
    let image = Rgb::filled(width, height, [r, g, b]);
    let is_png = path.extension().is_some_and(|extension| extension == "png");
    let bytes = if is_png {
        encode_png(&image)
    } else {
        encode_jpeg(&image, 90)
    };
    write(path, bytes);
}

fn images(folder: &Path, names: &[&str], size: [usize; 2]) {
    names.iter().for_each(|name| image(folder.join(name), size));
}

/// A mask with these labels, one row.
fn mask(path: PathBuf, labels: &[u8]) {
    write(path, encode_label_png(labels, 1, labels.len()));
}

/// Copies a file or a folder of the golden files.
fn golden(name: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../data/tests/golden")
        .join(name);
    if from.is_file() {
        write(to.to_owned(), fs::read(from).expect("a golden file"));
        return;
    }
    for entry in fs::read_dir(from).expect("a golden folder") {
        let entry = entry.expect("an entry").file_name();
        let entry = entry.to_string_lossy();
        golden(&format!("{name}/{entry}"), &to.join(&*entry));
    }
}

const PERSON: [usize; 2] = [16, 8];

/// Junk (-1), a distractor (0), a file that is no image, a query whom no other camera has seen.
fn market1501(root: &Path) {
    let root = root.join("Market-1501-v15.09.15");
    let train = [
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000301_02.jpg",
        "0007_c3s3_077419_03.jpg",
    ];
    images(&root.join("bounding_box_train"), &train, PERSON);
    let query = ["0001_c1s1_001051_00.jpg", "0003_c6s3_076467_00.jpg"];
    images(&root.join("query"), &query, PERSON);
    let test = [
        "-1_c1s1_000401_03.jpg",
        "0000_c1s1_000151_01.jpg",
        "0001_c2s1_000976_01.jpg",
        "0003_c6s3_076492_02.jpg",
    ];
    images(&root.join("bounding_box_test"), &test, PERSON);
    for folder in ["bounding_box_train", "bounding_box_test"] {
        write(root.join(folder).join("Thumbs.db"), b"none");
    }
    write(root.join("readme.txt"), "Market-1501\r\n");
}

/// Somebody who is in training and in the test.
fn duke(root: &Path) {
    let root = root.join("DukeMTMC-reID");
    let train = ["0001_c2_f0046182.jpg", "0005_c5_f0051341.jpg"];
    images(&root.join("bounding_box_train"), &train, PERSON);
    images(&root.join("query"), &["0005_c2_f0046985.jpg"], PERSON);
    images(
        &root.join("bounding_box_test"),
        &["0005_c5_f0051981.jpg", "0033_c1_f0057706.jpg"],
        PERSON,
    );
}

fn cuhk03(root: &Path) {
    for kind in ["labeled", "detected"] {
        let root = root.join("cuhk03-np").join(kind);
        images(
            &root.join("bounding_box_train"),
            &["0003_c1_21.png", "0003_c2_26.png"],
            PERSON,
        );
        images(&root.join("query"), &["0001_c1_1.png"], PERSON);
        images(&root.join("bounding_box_test"), &["0001_c2_6.png"], PERSON);
    }
}

/// Both versions side by side; lists with the line ends of Windows and spaces at the end; an image
/// that is not there.
fn msmt17(root: &Path) {
    for (version, train, test) in [
        ("MSMT17_V1", "train", "test"),
        ("MSMT17_V2", "mask_train_v2", "mask_test_v2"),
    ] {
        let root = root.join(version);
        let lists = [
            (
                "list_train.txt",
                train,
                &[
                    "0000/0000_000_01_0303morning_0008_0.jpg 0",
                    "0001/0001_000_05_0303noon_0200_1.jpg 1",
                ][..],
            ),
            (
                "list_val.txt",
                train,
                &["0000/0000_001_15_0303morning_0009_0.jpg 0"],
            ),
            (
                "list_query.txt",
                test,
                &["0000/0000_000_01_0302morning_0001_0.jpg 0"],
            ),
            (
                "list_gallery.txt",
                test,
                &[
                    "0000/0000_001_03_0302morning_0001_0.jpg 0",
                    "0002/0002_009_13_0302noon_0009_0.jpg 2",
                ],
            ),
        ];
        for (list, folder, lines) in lists {
            for line in lines {
                let name = line.split(' ').next().expect("a name");
                if version == "MSMT17_V1" || !name.contains("noon") {
                    image(root.join(folder).join(name), PERSON);
                }
            }
            write(root.join(list), lines.join(" \r\n") + "\r\n");
        }
    }
}

/// One image is not there, and one attribute everybody has.
fn pa100k(root: &Path) {
    golden(
        "mat/pa100k/annotation.mat",
        &root.join("PA100k/annotation.mat"),
    );
    images(
        &root.join("PA100k/data"),
        &["000001.jpg", "000002.jpg", "000004.jpg"],
        PERSON,
    );
}

/// The usual split and the zero-shot one in one folder.
fn peta(root: &Path) {
    golden("mat/peta/PETA.mat", &root.join("PETA/PETA.mat"));
    golden(
        "pickles/peta/dataset_zs_run0.pkl",
        &root.join("PETA/dataset_zs_run0.pkl"),
    );
    let names = ["00001.png", "00002.png", "00003.png", "00004.png"];
    images(&root.join("PETA/images"), &names, PERSON);
}

fn rap2(root: &Path) {
    let root = root.join("RAP2");
    golden("mat/rap2/RAP_annotation", &root.join("RAP_annotation"));
    golden(
        "pickles/rap2/dataset_zs_run0.pkl",
        &root.join("dataset_zs_run0.pkl"),
    );
    let names = [
        "00001.png",
        "00002.png",
        "00003.png",
        "00004.png",
        "a.png",
        "b.png",
        "c.png",
    ];
    images(&root.join("RAP_dataset"), &names, PERSON);
}

/// A split of one's own as JSON; what is not to be seen is labeled 2, and an image is in no split.
fn split(root: &Path) {
    let json = r#"{"image_name": ["1.png", "2.png", "3.png", "4.png"], "attr_name": ["hat", "bag"],
        "label": [[0, 1], [1, 2], [1, 0], [0, 0]], "partition": {"train": [2, 0], "trainval": [2, 0, 1], "val": [1], "test": [1]}}"#;
    write(root.join("dataset_zs_run0.json"), json);
    images(&root.join("images"), &["1.png", "2.png", "3.png"], PERSON);
}

/// Ids with spaces and the line ends of Windows; a mask of another size than its image, one with a
/// label without a name.
fn lip(root: &Path) {
    let (pictures, masks) = (
        root.join("TrainVal_images"),
        root.join("TrainVal_parsing_annotations"),
    );
    for (split, ids) in [
        ("train", ["100034_483681", "10005_205677"]),
        ("val", ["100034_483682", "10013_252"]),
    ] {
        write(
            pictures.join(format!("{split}_id.txt")),
            ids.join(" \r\n") + "\r\n",
        );
        for id in ids {
            image(pictures.join(format!("{split}_images/{id}.jpg")), [1, 20]);
        }
    }
    let all: Vec<u8> = (0..20).collect();
    let (train, val) = (
        masks.join("train_segmentations"),
        masks.join("val_segmentations"),
    );
    mask(train.join("100034_483681.png"), &all);
    mask(train.join("10005_205677.png"), &[0; 20]);
    mask(val.join("100034_483682.png"), &[0; 19]);
    mask(val.join("10013_252.png"), &[20; 20]);
}

fn cihp(root: &Path) {
    let root = root.join("instance-level_human_parsing");
    for (folder, list, id) in [
        ("Training", "train_id.txt", "0000006"),
        ("Validation", "val_id.txt", "0000001"),
    ] {
        let folder = root.join(folder);
        write(folder.join(list), format!("{id}\n"));
        image(folder.join(format!("Images/{id}.jpg")), [1, 4]);
        mask(
            folder.join(format!("Category_ids/{id}.png")),
            &[0, 10, 14, 15],
        );
        mask(folder.join(format!("Instance_ids/{id}.png")), &[0, 1, 2, 3]);
    }
}

fn atr(root: &Path) {
    let root = root.join("humanparsing");
    for (list, id) in [
        ("train_id.txt", "2500_1"),
        ("val_id.txt", "2500_2"),
        ("test_id.txt", "2500_3"),
    ] {
        write(root.join(list), format!("{id}\n"));
        image(root.join(format!("JPEGImages/{id}.jpg")), [1, 4]);
        mask(
            root.join(format!("SegmentationClassAug/{id}.png")),
            &[0, 9, 10, 255],
        );
    }
}

fn ccp(root: &Path) {
    golden("mat/ccp", root);
    image(root.join("photos/0001.jpg"), [2, 3]);
}

/// A crowd, a person without a labeled joint, a joint and a box outside their image, an image of
/// another size than the JSON says.
fn coco(root: &Path) {
    let joints = clasp_data::layouts::coco::COCO_JOINTS
        .map(|name| format!("{name:?}"))
        .join(", ");
    let points = |x: u32, y: u32| format!("{x}, {y}, 2, {}", ["0, 0, 0"; 16].join(", "));
    let person = |id: u32, image: u32, bbox: &str, crowd: u8, points: String| {
        format!(
            r#"{{"id": {id}, "image_id": {image}, "category_id": 1, "bbox": {bbox}, "area": 99, "iscrowd": {crowd},
                 "num_keypoints": 1, "segmentation": [[0, 0, 1, 0, 1, 1]], "keypoints": [{points}]}}"#
        )
    };
    let people = [
        person(1, 139, "[1, 2, 10, 20]", 0, points(5, 6)),
        person(2, 139, "[5, 2, 10, 20]", 0, points(41, 6)),
        person(3, 285, "[90, 2, 10, 20]", 0, points(5, 6)),
        person(4, 285, "[0, 0, 40, 30]", 1, points(5, 6)),
        person(5, 285, "[0, 0, 9, 9]", 0, ["0, 0, 0"; 17].join(", ")),
    ];
    let json = format!(
        r#"{{"images": [{{"id": 139, "file_name": "000000000139.jpg", "width": 40, "height": 30}},
                        {{"id": 285, "file_name": "000000000285.jpg", "width": 40, "height": 30}}],
            "annotations": [{}],
            "categories": [{{"id": 1, "name": "person", "keypoints": [{joints}], "skeleton": [[16, 14]]}}]}}"#,
        people.join(", ")
    );
    write(
        root.join("coco/annotations/person_keypoints_val2017.json"),
        json,
    );
    image(root.join("coco/val2017/000000000139.jpg"), [30, 40]);
    image(root.join("coco/val2017/000000000285.jpg"), [40, 30]);
    let boxes = r#"[{"image_id": 139, "category_id": 1, "bbox": [-2, 2, 12.5, 20], "score": 0.9},
        {"image_id": 285, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.8}]"#;
    let detections = "coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json";
    write(root.join(detections), boxes);
}

/// Annotation with and without the folders of the cities; of the two only one says who is hidden.
fn citypersons(root: &Path) {
    let root = root.join("CityPersons");
    let cities = root.join("leftImg8bit_trainvaltest/leftImg8bit");
    let (aachen, lindau) = (
        "aachen_000000_000019_leftImg8bit.png",
        "lindau_000000_000019_leftImg8bit.png",
    );
    image(cities.join("train/aachen").join(aachen), [64, 128]);
    image(cities.join("val/lindau").join(lindau), [64, 128]);
    let json = |key: &str, name: &str, hidden: &str| {
        format!(
            r#"{{"images": [{{"id": 1, "{key}": "{name}", "width": 128, "height": 64}}],
                "annotations": [
                  {{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 24, 60], "height": 60, "ignore": 0, "iscrowd": 0{hidden}}},
                  {{"id": 2, "image_id": 1, "category_id": 1, "bbox": [90, 4, 20, 40], "height": 40, "ignore": 1, "iscrowd": 0}},
                  {{"id": 3, "image_id": 1, "category_id": 1, "bbox": [128, 4, 20, 40], "height": 40, "ignore": 0, "iscrowd": 0}}],
                "categories": [{{"id": 1, "name": "pedestrian"}}]}}"#
        )
    };
    write(
        root.join("train.json"),
        json("file_name", &format!("aachen/{aachen}"), ""),
    );
    write(
        root.join("val_gt_mm_nested.json"),
        json("file_name", &format!("lindau/{lindau}"), ""),
    );
    write(
        root.join("val_gt.json"),
        json(
            "im_name",
            lindau,
            r#", "vis_ratio": 0.4, "vis_bbox": [3, 4, 10, 60]"#,
        ),
    );
}

/// Frames smaller than a box in them; galleries of 50 and 100, and none of the others.
fn cuhk_sysu(root: &Path) {
    let root = root.join("CUHK-SYSU");
    golden("mat/cuhk_sysu", &root);
    images(
        &root.join("Image/SSM"),
        &["s1.jpg", "s2.jpg", "s3.jpg", "s4.jpg"],
        [48, 64],
    );
    image(root.join("Image/SSM/s5.jpg"), [6, 6]);
}

/// Queries with the line ends of Windows, one of them beyond the left edge; a frame that is not
/// there.
fn prw(root: &Path) {
    let root = root.join("PRW-v16.04.20");
    golden("mat/prw", &root);
    images(
        &root.join("frames"),
        &["c1s1_000001.jpg", "c1s1_000101.jpg", "c2s1_000102.jpg"],
        [96, 128],
    );
    write(
        root.join("query_info.txt"),
        "9 10 20 30 60.5 c1s1_000101\r\n8 -3.5 20 30 60 c1s1_000103\r\n",
    );
}

/// Tables of one's own: images of one name in two folders, sides written short, a constant answer,
/// a person to search for.
fn tables(root: &Path) {
    for folder in ["a", "b"] {
        images(&root.join(folder), &["1.jpg", "2.jpg"], [1, 4]);
        mask(root.join(folder).join("1.png"), &[0, 1, 2, 255]);
    }
    let reid = "image,person,camera,split\na/1.jpg,anna,north,train\na/2.jpg,anna,south,train\nb/1.jpg,bob,north,query\n\
                b/2.jpg,bob,south,gallery\na/2.jpg,0,south,gallery\nb/3.jpg,-1,south,gallery\n";
    write(root.join("reid.csv"), reid);
    let attributes = "image,split,hat,\"bag, large\"\r\na/1.jpg,train,0,1\r\nb/1.jpg,train,1,1\r\nb/2.jpg,val,1,0\r\n";
    write(root.join("attributes.csv"), attributes);
    write(
        root.join("parsing.csv"),
        "image,mask,split\na/1.jpg,a/1.png,train\nb/1.jpg,b/1.png,val\n",
    );
    write(
        root.join("labels.txt"),
        "background\nl_arm\nr_arm\nleft leg\n",
    );
    let boxes = |names: [&str; 2]| {
        let [first, second] = names;
        format!(
            r#"{{"images": [{{"id": 1, "file_name": "{first}", "width": 4, "height": 1}}, {{"id": 2, "file_name": "{second}", "width": 4, "height": 1}}],
                "annotations": [{{"id": 1, "image_id": 1, "bbox": [0, 0, 2, 1], "pid": 4}}, {{"id": 2, "image_id": 2, "bbox": [1, 0, 2, 1], "pid": 4}}]}}"#
        )
    };
    write(
        root.join("instances_train.json"),
        boxes(["a/1.jpg", "a/2.jpg"]),
    );
    write(
        root.join("instances_test.json"),
        boxes(["b/1.jpg", "b/2.jpg"]),
    );
}
