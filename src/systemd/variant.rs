//! Values of properties as zbus sends and receives them.

use zbus::Variant;

use super::property::Value;

/// A value as zbus sends it.
pub(super) fn variant(value: &Value) -> Variant<'_> {
    match value {
        Value::Bool(yes) => Variant::from(*yes),
        Value::I32(number) => Variant::from(*number),
        Value::U32(number) => Variant::from(*number),
        Value::U64(number) => Variant::from(*number),
        Value::Text(text) => Variant::from(text.as_str()),
        Value::Texts(texts) => Variant::new(texts.clone()),
        Value::Bytes(bytes) => Variant::new(bytes.clone()),
        Value::Devices(devices) => Variant::new(devices.clone()),
        Value::Pairs(pairs) => Variant::new(pairs.clone()),
        Value::Addresses(addresses) => Variant::new(addresses.clone()),
        Value::Ports(ports) => Variant::new(ports.clone()),
        Value::Interfaces(interfaces) => Variant::new(interfaces.clone()),
        Value::NftSets(sets) => Variant::new(sets.clone()),
        Value::Conditions(conditions) => Variant::new(conditions.clone()),
    }
}

/// The simple values that properties of units have; `None` for another type.
pub(super) fn value(found: &Variant<'_>) -> Option<Value> {
    Some(match found {
        Variant::Bool(yes) => Value::Bool(*yes),
        Variant::I32(number) => Value::I32(*number),
        Variant::U32(number) => Value::U32(*number),
        Variant::U64(number) => Value::U64(*number),
        Variant::Str(text) => Value::Text(text.as_str().to_owned()),
        Variant::ObjectPath(path) => Value::Text(path.as_str().to_owned()),
        Variant::Array(array) if array.element_signature().to_string() == "s" => {
            Value::Texts(found.try_clone().ok()?.try_into().ok()?)
        }
        Variant::Array(array) if array.element_signature().to_string() == "y" => {
            Value::Bytes(found.try_clone().ok()?.try_into().ok()?)
        }
        Variant::Array(array) if array.element_signature().to_string() == "(sbbsi)" => {
            let rows: Vec<(String, bool, bool, String, i32)> = found.try_clone().ok()?.try_into().ok()?;
            Value::Conditions(
                rows.into_iter().map(|(name, trigger, negate, text, _)| (name, trigger, negate, text)).collect(),
            )
        }
        _ => return None,
    })
}
