//! The vectors of keys that are sealed under a data key of KMS (made with OpenSSL's AES-GCM-SIV).

use data_encoding::HEXLOWER;
use serde_json::Value;

use super::*;

fn bytes(vector: &Value, name: &str) -> Vec<u8> {
    let text = vector[name].as_str().unwrap();
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn context(vector: &Value) -> KeyContext {
    let subject: Subject = vector["subject"].as_str().unwrap().parse().unwrap();
    KeyContext {
        file_id: FileId::from_bytes(bytes(vector, "file_id").try_into().unwrap()),
        cipher: subject.cipher(),
        created_at: 0,
        role: KeyRole::Current,
        subject,
    }
}

/// What comes out when KMS opens its part to the data key of the vector.
fn opened(vector: &Value, wrapped: Vec<u8>) -> Result<(Vec<u8>, Dek), KeyError> {
    let wrapped = AwsKms::wrapped("arn".to_owned(), UNDER_DATA_KEY, wrapped);
    let context = context(vector);
    let parts = Parts::of(&context, &wrapped)?;
    let key: [u8; 32] = bytes(vector, "data_key").try_into().unwrap();
    let key = WrappingKey::from_bytes(&key);
    let sealed = parts.sealed.unwrap();
    let dek = wrap::open_under(&key, &associated(&context), &context, sealed)?;
    Ok((parts.blob.to_vec(), dek))
}

#[test]
fn vectors_open_or_fail_for_their_reason() {
    let text = include_str!("../../../vectors/kms_data_keys.json");
    let vectors: Value = serde_json::from_str(text).unwrap();
    let valid = vectors["valid"].as_array().unwrap();
    assert_eq!(valid.len(), 3);
    for vector in valid {
        let (blob, dek) = opened(vector, bytes(vector, "wrapped")).unwrap();
        assert_eq!(blob, bytes(vector, "blob"));
        assert_eq!(dek.expose_secret().as_slice(), bytes(vector, "dek"));
    }
    let invalid = vectors["invalid"].as_array().unwrap();
    assert_eq!(invalid.len(), 21);
    for vector in invalid {
        let mut changed = valid[0].clone();
        let mut wrapped = bytes(&changed, "wrapped");
        for (name, value) in vector.as_object().unwrap() {
            let number = || usize::try_from(value.as_u64().unwrap()).unwrap();
            match name.as_str() {
                "subject" | "file_id" | "data_key" => changed[name] = value.clone(),
                "at" => wrapped[number()] ^= u8::try_from(vector["xor"].as_u64().unwrap()).unwrap(),
                "cut" => wrapped.truncate(number()),
                "append" => wrapped.extend(bytes(vector, "append")),
                "name" | "failure" | "xor" => {}
                other => panic!("{other}"),
            }
        }
        let error = opened(&changed, wrapped).unwrap_err();
        let found = match error {
            KeyError::Tampered { .. } => "tampered",
            KeyError::WrappedSize { .. } => "wrapped_size",
            error => panic!("{vector}: {error}"),
        };
        assert_eq!(found, vector["failure"], "{vector}");
    }
}
