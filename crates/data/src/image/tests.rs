//! Tests of decoding, encoding and preprocessing.

use std::borrow::Cow;
use std::io::Cursor;

use fs_err as fs;
use image::{DynamicImage, ImageFormat};
use proptest::prelude::*;

use super::jpeg::with_tables;
use super::*;

fn gradient(width: usize, height: usize) -> Rgb {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            pixels.extend([(255 * x / width) as u8, (255 * y / height) as u8, 90]);
        }
    }
    Rgb::new(width, height, pixels)
}

fn decoded(bytes: &[u8]) -> Rgb {
    decode(bytes, &Limits::default()).unwrap()
}

fn error(bytes: &[u8]) -> ImageError {
    decode(bytes, &Limits::default()).unwrap_err()
}

fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn dynamic(image: &Rgb) -> DynamicImage {
    let (width, height) = (image.width as u32, image.height as u32);
    let buffer = image::RgbImage::from_raw(width, height, image.pixels.clone()).unwrap();
    DynamicImage::ImageRgb8(buffer)
}

#[test]
fn lossless_formats_come_back_equal() {
    let image = gradient(31, 17);
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
        let bytes = encoded(dynamic(&image), format);
        assert!(decoded(&bytes) == image, "{format:?}");
    }
    assert!(decoded(&encode_png(&image)) == image);
}

#[test]
fn jpeg_comes_back_close() {
    let image = gradient(64, 48);
    let back = decoded(&encode_jpeg(&image, 95));
    let far = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 8;
    assert!(!image.pixels.iter().zip(&back.pixels).any(far));
}

#[test]
fn a_single_pixel_is_an_image() {
    let image = Rgb::filled(1, 1, [200, 10, 10]);
    assert_eq!(decoded(&encode_png(&image)), image);
    assert_eq!(decoded(&encode_jpeg(&image, 90)).pixels.len(), 3);
}

#[test]
fn gray_alpha_and_sixteen_bits_become_rgb() {
    let gray = image::GrayImage::from_raw(2, 1, vec![0, 200]).unwrap();
    let gray = encoded(DynamicImage::ImageLuma8(gray), ImageFormat::Png);
    assert_eq!(decoded(&gray).pixels, [0, 0, 0, 200, 200, 200]);

    let pixels = vec![255, 0, 0, 255, 10, 20, 30, 0, 0, 0, 0, 128];
    let alpha = image::RgbaImage::from_raw(3, 1, pixels).unwrap();
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let alpha = encoded(DynamicImage::ImageRgba8(alpha.clone()), format);
        let expected = [255, 0, 0, 255, 255, 255, 127, 127, 127];
        assert_eq!(decoded(&alpha).pixels, expected, "{format:?}");
    }

    let deep = image::ImageBuffer::from_raw(2, 1, vec![0, 65_535, 257, 300, 30_000, 12_850]);
    let deep = encoded(DynamicImage::ImageRgb16(deep.unwrap()), ImageFormat::Png);
    assert_eq!(decoded(&deep).pixels, [0, 255, 1, 1, 117, 50]);
}

/// A JPEG with an EXIF segment that holds only the orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08".to_vec();
    exif.extend([
        0,
        1,
        0x01,
        0x12,
        0,
        3,
        0,
        0,
        0,
        1,
        0,
        orientation,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend([0xff, 0xe1]);
    bytes.extend(((exif.len() + 2) as u16).to_be_bytes());
    bytes.extend(exif);
    bytes.extend(&jpeg[2..]);
    bytes
}

#[test]
fn a_jpeg_without_huffman_tables_is_decoded_with_those_of_the_standard() {
    let pixels = (0..3 * 40 * 24).map(|i| (i * i % 251) as u8).collect();
    let whole = encode_jpeg(&Rgb::new(40, 24, pixels), 90);
    // Leave the segments of tables out.
    let (mut bare, mut at) = (whole[..2].to_vec(), 2);
    while whole[at + 1] != 0xda {
        let end = at + 2 + usize::from(u16::from_be_bytes([whole[at + 2], whole[at + 3]]));
        if whole[at + 1] != 0xc4 {
            bare.extend_from_slice(&whole[at..end]);
        }
        at = end;
    }
    bare.extend_from_slice(&whole[at..]);
    assert!(bare.len() + 400 < whole.len());
    assert!(decoded(&bare) == decoded(&whole));
    assert!(matches!(with_tables(&whole), Cow::Borrowed(_)));
    for cut in 0..bare.len() {
        let _ = with_tables(&bare[..cut]);
    }
}

#[test]
fn a_color_profile_takes_no_memory() {
    let chunk = |kind: &[u8], data: &[u8]| {
        let length = (data.len() as u32).to_be_bytes();
        // The checksum is not right: the content of the chunk is not read.
        [&length[..], kind, data, &[0; 4]].concat()
    };
    let png = encode_png(&Rgb::filled(5, 4, [9, 8, 7]));
    let header = 8 + 25;
    assert_eq!(&png[header - 21..header - 17], b"IHDR");
    let profile = chunk(b"iCCP", &[b"k\0\0", &[0; 1000][..]].concat());
    let with = [&png[..header], &profile, &png[header..]].concat();
    assert!(decoded(&with) == decoded(&png));
    for cut in 0..with.len() {
        let _ = without_profile(&with[..cut]);
    }
    // The second used to stay, and that of a file whose size or orientation is read.
    let text = chunk(b"tEXt", b"k\0v");
    let (head, rest) = png.split_at(header);
    let several = [head, &profile, &text, &profile, &profile, rest].concat();
    assert!(*without_profile(&several) == [head, &text, rest].concat());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    fs::write(&path, &with).unwrap();
    assert_eq!(size_of(&path), Some([4, 5]));
    assert!(!is_turned(&with));
}

#[test]
fn the_orientation_tag_is_applied() {
    // Four flat corners distinguish all eight orientations.
    let mut image = Rgb::filled(32, 16, [0, 0, 0]);
    for y in 0..16 {
        for x in 0..32 {
            let corner = 2 * usize::from(y >= 8) + usize::from(x >= 16);
            let start = 3 * (y * 32 + x);
            image.pixels[start..start + 3].fill([0, 80, 160, 240][corner]);
        }
    }
    let jpeg = encode_jpeg(&image, 95);
    let cases = [
        (1, [0, 1, 2, 3]),
        (2, [1, 0, 3, 2]),
        (3, [3, 2, 1, 0]),
        (4, [2, 3, 0, 1]),
        (5, [0, 2, 1, 3]),
        (6, [2, 0, 3, 1]),
        (7, [3, 1, 2, 0]),
        (8, [1, 3, 0, 2]),
    ];
    for (tag, expected) in cases {
        let turned = decoded(&with_orientation(&jpeg, tag));
        assert_eq!(is_turned(&with_orientation(&jpeg, tag)), tag != 1);
        let size = if tag < 5 { (32, 16) } else { (16, 32) };
        assert_eq!((turned.width, turned.height), size, "orientation {tag}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), with_orientation(&jpeg, tag)).unwrap();
        assert_eq!(size_of(file.path()), Some([size.1, size.0]), "{tag}");
        let (right, bottom) = (turned.width - 4, turned.height - 4);
        let corners = [(4, 4), (right, 4), (4, bottom), (right, bottom)];
        let found = corners.map(|(x, y)| (u16::from(turned.pixel(x, y)[0]) + 40) / 80);
        assert_eq!(found, expected, "orientation {tag}");
    }
    // A tag that means nothing is ignored.
    assert_eq!(decoded(&with_orientation(&jpeg, 77)).width, 32);
}

#[test]
fn files_cut_short_are_errors_at_any_length() {
    let image = gradient(40, 30);
    let files = [
        encode_jpeg(&image, 80),
        with_orientation(&encode_jpeg(&image, 80), 6),
        encode_png(&image),
        encoded(dynamic(&image), ImageFormat::WebP),
        encoded(dynamic(&image), ImageFormat::Bmp),
    ];
    for bytes in &files {
        for tenth in 0..10 {
            let cut = &bytes[..bytes.len() * tenth / 10];
            assert!(decode(cut, &Limits::default()).is_err(), "{}", cut.len());
        }
    }
    let jpeg = &files[0];
    let cut = error(&jpeg[..jpeg.len() - 2]);
    assert!(matches!(cut, ImageError::Truncated { .. }), "{cut}");
}

#[test]
fn what_is_not_an_image_says_what_was_found() {
    let text = error(b"name,label\na,b\n").to_string();
    assert!(text.contains("text starting with \"name,label"), "{text}");
    assert!(error(b"").to_string().contains("no bytes"));
    let gif = error(b"GIF89a\x01\0\x01\0").to_string();
    assert!(gif.contains("47 49 46"), "{gif}");
}

/// A PNG of nothing but a header with these sides.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encode_png(&gradient(8, 8));
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    })
}

#[test]
fn a_claim_of_thirty_thousand_squared_is_refused_unread() {
    let start = std::time::Instant::now();
    let error = error(&claiming(30_000, 30_000));
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("30000 x 30000"), "{error}");
    // Touching 2.7 GB takes far longer.
    assert!(start.elapsed().as_millis() < 200);
}

/// Within the limit of pixels such images took gigabytes for the padding of their rows.
#[test]
fn an_image_of_one_long_row_or_column_is_refused() {
    for (width, height) in [(25_000_000, 1), (1, 65_536)] {
        let error = error(&claiming(width, height));
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("65535 a side"), "{error}");
    }
}

#[test]
fn limits_are_the_callers() {
    let bytes = encode_png(&gradient(20, 10));
    let limits = |max_pixels, max_bytes, max_side| Limits {
        max_pixels,
        max_bytes,
        max_side,
    };
    assert!(decode(&bytes, &limits(200, 600, 20)).is_ok());
    assert!(decode(&bytes, &limits(199, 600, 20)).is_err());
    assert!(decode(&bytes, &limits(200, 599, 20)).is_err());
    assert!(decode(&bytes, &limits(200, 600, 19)).is_err());
}

#[test]
fn normalizes_to_planes() {
    let image = Rgb::new(2, 1, vec![0, 255, 51, 255, 0, 102]);
    let planes = normalize(&image, [0.5, 0.5, 0.0], [0.5, 0.25, 1.0]);
    let expected = [-1.0, 1.0, 2.0, -2.0, 0.2, 0.4];
    for (a, e) in planes.iter().zip(expected) {
        assert!((a - e).abs() < 1e-6, "{planes:?}");
    }
}

proptest! {
    #[test]
    fn flipping_twice_changes_nothing(width in 1_usize..20, height in 1_usize..20) {
        let image = gradient(width, height);
        prop_assert_eq!(flip(&flip(&image)), image);
    }

    #[test]
    fn damaged_files_never_panic(
        which in 0_usize..4, at in 0.0_f64..1.0, value: u8, cut in 0.0_f64..1.0,
    ) {
        let image = gradient(24, 20);
        let mut bytes = match which {
            0 => encode_jpeg(&image, 70),
            1 => encode_png(&image),
            2 => encoded(dynamic(&image), ImageFormat::WebP),
            _ => encoded(dynamic(&image), ImageFormat::Bmp),
        };
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = value;
        if cut < 0.5 {
            bytes.truncate((2.0 * cut * bytes.len() as f64) as usize);
        }
        let limits = Limits { max_pixels: 1 << 20, max_bytes: 4 << 20, max_side: 1 << 20 };
        let _ = decode(&bytes, &limits);
    }
}
