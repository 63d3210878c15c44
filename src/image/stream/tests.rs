use super::super::progress::Silent;
use super::*;

fn pass(source: &[u8], keep: Keep) -> Result<(Vec<u8>, Seen)> {
    run(source, keep, &Silent, |chunks| {
        let mut all = Vec::new();
        chunks.read_to_end(&mut all)?;
        Ok(all)
    })
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn sample() -> Vec<u8> {
    (0u32..400_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn every_compression_gives_the_same_diff_id() {
    let data = sample();
    let many = [gzip(&data[..1000]), gzip(&data[1000..])].concat();
    for (packed, compression) in [
        (data.clone(), Compression::None),
        (gzip(&data), Compression::Gzip),
        (many, Compression::Gzip),
        (zstd::encode_all(data.as_slice(), 1).unwrap(), Compression::Zstd),
    ] {
        let mut kept = tempfile::tempfile().unwrap();
        let (out, seen) = pass(&packed, Keep::Copy(kept.try_clone().unwrap())).unwrap();
        assert!(out == data);
        assert_eq!(
            (seen.blob, seen.blob_size, seen.compression),
            (Digest::of(&packed), packed.len() as u64, compression)
        );
        assert_eq!(seen.diff_id, Digest::of(&data));
        let mut copy = Vec::new();
        io::Seek::rewind(&mut kept).unwrap();
        kept.read_to_end(&mut copy).unwrap();
        assert!(copy == packed);
    }
}

#[test]
fn repacking_is_hashed_as_written() {
    let data = sample();
    let mut kept = tempfile::tempfile().unwrap();
    let (_, seen) = pass(&gzip(&data), Keep::Repack(kept.try_clone().unwrap())).unwrap();
    let mut packed = Vec::new();
    io::Seek::rewind(&mut kept).unwrap();
    kept.read_to_end(&mut packed).unwrap();
    assert_eq!((seen.blob, seen.compression), (Digest::of(&packed), Compression::Zstd));
    assert!(zstd::decode_all(packed.as_slice()).unwrap() == data);
}

#[test]
fn broken_data_is_an_error_and_nothing_hangs() {
    let packed = gzip(&sample());
    assert!(pass(&packed[..packed.len() / 2], Keep::Nothing).is_err());
    let mut flipped = packed.clone();
    let last = flipped.len() - 5;
    flipped[last] ^= 1;
    assert!(pass(&flipped, Keep::Nothing).is_err(), "a wrong checksum was accepted");
    assert!(pass(&[packed.as_slice(), b"garbage behind"].concat(), Keep::Nothing).is_err());
    assert!(pass(b"BZh91AY&SY", Keep::Nothing).unwrap_err().to_string().contains("bzip2"));
    let gave_up: Result<((), Seen)> = run(packed.as_slice(), Keep::Nothing, &Silent, |_| Err(fault("enough").into()));
    assert_eq!(gave_up.unwrap_err().to_string(), "enough");
}

#[test]
fn what_the_consumer_leaves_is_hashed_too() {
    let data = sample();
    let (first, seen) = run(data.as_slice(), Keep::Nothing, &Silent, |chunks| Ok(chunks.fill_buf()?[0])).unwrap();
    assert_eq!((first, seen.diff_id), (data[0], Digest::of(&data)));
}
