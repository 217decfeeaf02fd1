//! That structures are written as objects, and in no other way.
//!
//! Serde reads a structure from a list of its members' values as well: an empty list is then a configuration of nothing
//! but defaults, and `[1,2]` two numbers of processors. [`Objects`] stands between a reader of JSON and what is read, and
//! lets no list through where a structure is asked for. Lists of things, tuples and choices pass as they are.
//!
//! What is not watched: what serde keeps aside before it knows what it is (`flatten`, `untagged`), which no request uses.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
        value::{BorrowedStrDeserializer, StrDeserializer},
    },
};

/// What is read with every structure in it from a JSON object. Keys of maps are strings.
///
/// An error says where in it a list was found, as in `disks.0: a list, where an object is expected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objects<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(Watched { inner: deserializer, place: &Place::Top }).map(Self)
    }
}

/// Where something is in what is read.
enum Place<'p> {
    Top,
    Member { of: &'p Place<'p>, name: &'p str },
    Item { of: &'p Place<'p>, index: usize },
}

impl Place<'_> {
    fn is_top(&self) -> bool {
        matches!(self, Self::Top)
    }

    /// The error for a list that is here.
    fn list<E: Error>(&self) -> E {
        let colon = if self.is_top() { "" } else { ": " };
        E::custom(format_args!("{self}{colon}a list, where an object is expected"))
    }
}

/// As paths are written everywhere: `disks.0.path`. It is as deep as the types are, and holds names of theirs.
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, step): (_, &dyn fmt::Display) = match self {
            Self::Top => return Ok(()),
            Self::Member { of, name } => (of, name),
            Self::Item { of, index } => (of, index),
        };
        let dot = if of.is_top() { "" } else { "." };
        write!(f, "{of}{dot}{step}")
    }
}

/// A part of serde's machinery that is at that place: whatever it hands on is watched, too.
struct Watched<'p, I> {
    inner: I,
    place: &'p Place<'p>,
}

/// What can hold no structure, or hides it, is read as it is.
macro_rules! read_as_it_is {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Watched<'_, D> {
    type Error = D::Error;

    read_as_it_is! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_unit deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Watched { inner: visitor, place: self.place })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, Watched { inner: visitor, place: self.place })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_seq(Watched { inner: visitor, place: self.place })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple(len, Watched { inner: visitor, place: self.place })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple_struct(name, len, Watched { inner: visitor, place: self.place })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(Watched { inner: visitor, place: self.place })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_struct(name, fields, Members(Watched { inner: visitor, place: self.place }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_enum(name, variants, Watched { inner: visitor, place: self.place })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Takes the members of an object, and nothing else.
struct Members<'p, V>(Watched<'p, V>);

impl<'de, V: Visitor<'de>> Visitor<'de> for Members<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(members)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<V::Value, A::Error> {
        Err(self.0.place.list())
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watched<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Watched { inner: deserializer, place: self.place })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Watched { inner: deserializer, place: self.place })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(WatchedItems { items, of: self.place, index: 0 })
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(WatchedMembers { members, of: self.place, name: Cow::Borrowed("") })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, choice: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(Watched { inner: choice, place: self.place })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Watched<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Watched { inner: deserializer, place: self.place })
    }
}

/// The items of a list.
struct WatchedItems<'p, A> {
    items: A,
    of: &'p Place<'p>,
    index: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for WatchedItems<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let place = Place::Item { of: self.of, index: self.index };
        self.index = self.index.saturating_add(1);
        self.items.next_element_seed(Watched { inner: seed, place: &place })
    }

    fn size_hint(&self) -> Option<usize> {
        self.items.size_hint()
    }
}

/// The members of an object, and the name of the one whose value comes next.
struct WatchedMembers<'de, 'p, A> {
    members: A,
    of: &'p Place<'p>,
    name: Cow<'de, str>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WatchedMembers<'de, '_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(Name(name)) = self.members.next_key()? else { return Ok(None) };
        self.name = name;
        match &self.name {
            Cow::Borrowed(name) => seed.deserialize(BorrowedStrDeserializer::new(name)),
            Cow::Owned(name) => seed.deserialize(StrDeserializer::new(name)),
        }
        .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let place = Place::Member { of: self.of, name: &self.name };
        self.members.next_value_seed(Watched { inner: seed, place: &place })
    }

    fn size_hint(&self) -> Option<usize> {
        self.members.size_hint()
    }
}

/// The name of a member: a piece of the text wherever it is written there as it is.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Name<'de>, E> {
        Ok(Name(Cow::Borrowed(name)))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name<'de>, E> {
        Ok(Name(Cow::Owned(name.to_owned())))
    }
}

impl<'de, 'p, A: EnumAccess<'de>> EnumAccess<'de> for Watched<'p, A> {
    type Error = A::Error;
    type Variant = Watched<'p, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let Self { inner, place } = self;
        inner.variant_seed(seed).map(|(name, content)| (name, Watched { inner: content, place }))
    }
}

/// The name of a choice is no step of the way to what it holds: it is seen where the choice is.
impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Watched<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Watched { inner: seed, place: self.place })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Watched { inner: visitor, place: self.place })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Members(Watched { inner: visitor, place: self.place }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, value::RawValue};

    use super::{super::*, *};

    /// A type of a request, by its name in the document, read from a text in one way or the other.
    type Reading = (&'static str, fn(&str) -> Result<(), String>, fn(&str) -> Result<(), String>);

    fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<(), String> {
        serde_json::from_str::<T>(text).map(|_| ()).map_err(|error| error.to_string())
    }

    macro_rules! readings {
        ($($name:ident)*) => { [$((stringify!($name), read::<Objects<$name>>, read::<$name>)),*] };
    }

    const REQUESTS: [Reading; 20] = readings! {
        DeviceConfig DiskConfig FsConfig GenericVhostUserConfig NetConfig PmemConfig UserDeviceConfig VdpaConfig
        VsockConfig VmCancelJob VmCoredumpData VmConfig ReceiveMigrationData VmRemoveDevice VmResize VmResizeDisk
        VmResizeZone RestoreConfig SendMigrationData VmSnapshotConfig
    };

    /// Calls `found` for everything in a type that is a structure, with a body that has only a list there, and the place.
    fn structures(
        document: &Value,
        schema: &Value,
        body: &dyn Fn(Value) -> Value,
        found: &mut dyn FnMut(Value, &str),
        place: &str,
    ) {
        let mut schema = schema;
        while let Some(next) = schema.get("$ref").or_else(|| schema.get("anyOf")?.get(0)) {
            schema = match next.as_str() {
                Some(name) => document.pointer(name.strip_prefix('#').unwrap()).unwrap(),
                None => next,
            };
        }
        let dot = if place.is_empty() { "" } else { "." };
        if let Some(items) = schema.get("items") {
            structures(document, items, &|item| body(json!([item])), found, &format!("{place}{dot}0"));
        }
        let Some(members) = schema.get("properties").and_then(Value::as_object) else { return };
        found(body(json!([])), place);
        found(body(json!([1, {}, []])), place);
        for (name, member) in members {
            structures(
                document,
                member,
                &|value| body(json!({ name: value })),
                found,
                &format!("{place}{dot}{name}"),
            );
        }
    }

    #[test]
    fn a_list_for_any_structure_of_a_request_is_refused_by_its_place() {
        let document: Value = serde_json::from_str(crate::OPENAPI).unwrap();
        let mut asked: Vec<&str> = (document["paths"].as_object().unwrap().values())
            .filter_map(|path| path.pointer("/put/requestBody/content/application~1json/schema/$ref"))
            .map(|name| name.as_str().unwrap().rsplit_once('/').unwrap().1)
            .collect();
        asked.sort_unstable();
        let mut known = REQUESTS.map(|(name, ..)| name);
        known.sort_unstable();
        assert_eq!(asked, known);

        let (mut all, mut taken_by_serde) = (0, 0);
        for (name, watched, plain) in REQUESTS {
            let schema = &document["components"]["schemas"][name];
            let mut found = |body: Value, place: &str| {
                let said = watched(&body.to_string()).unwrap_err();
                let colon = if place.is_empty() { "" } else { ": " };
                let expected = format!("{place}{colon}a list, where an object is expected at line 1 column ");
                assert!(said.starts_with(&expected), "{name} {body}: {said}");
                all += 1;
                taken_by_serde += usize::from(plain(&body.to_string()).is_ok());
            };
            structures(&document, schema, &|value| value, &mut found, "");
        }
        // That there is something to be found, and that it is found for no other reason.
        assert!(all > 100 && taken_by_serde > 10, "{all}, {taken_by_serde}");
    }

    #[test]
    fn whatever_else_is_wrong_is_told_as_before_but_where_an_object_is_missing() {
        for text in [
            "{",
            "",
            "{\"cpus\":{\"boot_vcpus\":-1,\"max_vcpus\":1}}",
            "{\"cpus\":{\"boot_vcpus\":1}}",
            "{\"disks\":{}}",
            "{\"disks\":[{\"path\":7}]}",
            "{\"iommu\":true,\"iommu\":true}",
            "{\"disks\":[{\"rate_limiter_config\":{\"tea\":1}}]}",
            "{\"serial\":{\"mode\":\"tea\"}}",
            "{\"serial\":{\"mode\":{\"Off\":1}}}",
            "{\"memory\":{\"size\":1.5}}",
            "{\"a\":[1,}",
        ] {
            assert_eq!(read::<Objects<VmConfig>>(text), read::<VmConfig>(text), "{text}");
            assert!(read::<VmConfig>(text).is_err(), "{text}");
        }
        let said = read::<Objects<VmConfig>>("{\"cpus\":7}").unwrap_err();
        assert!(said.starts_with("invalid type: integer `7`, expected an object at line 1"), "{said}");
    }

    #[test]
    fn everything_but_a_list_for_a_structure_passes() {
        #[derive(Debug, PartialEq, Deserialize)]
        enum Choice {
            Nothing,
            One(u8),
            Held(Point),
            Two(u8, Point),
            Named { x: u8, point: Point },
        }
        #[derive(Debug, PartialEq, Deserialize)]
        struct Point {
            x: u8,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        struct Wrapped(Option<Point>);
        #[derive(Debug, PartialEq, Deserialize)]
        struct Pair(u8, Point);
        #[derive(Debug, Deserialize)]
        struct All<'a> {
            choices: Vec<Choice>,
            wrapped: Vec<Wrapped>,
            pair: Pair,
            tuple: (u8, Point),
            anything: Value,
            text: Box<RawValue>,
            #[serde(borrow)]
            borrowed: Cow<'a, str>,
            nothing: (),
            map: std::collections::BTreeMap<String, Point>,
        }
        let good = r#"{"unknown":[{"x":[]}],"choices":["Nothing",{"One":1},{"Held":{"x":1}},{"Two":[1,{"x":2}]},
            {"Named":{"x":1,"point":{"x":2}}}],"wrapped":[null,{"x":3}],"pair":[4,{"x":5}],"tuple":[6,{"x":7}],
            "anything":[[],{"a":[1]}],"text":[ 1, [2] ],"borrowed":"b","nothing":null,"m\u0061p":{"k\"":{"x":8}}}"#;
        let Objects(all) = serde_json::from_str::<Objects<All<'_>>>(good).unwrap();
        let choices = [
            Choice::Nothing,
            Choice::One(1),
            Choice::Held(Point { x: 1 }),
            Choice::Two(1, Point { x: 2 }),
            Choice::Named { x: 1, point: Point { x: 2 } },
        ];
        assert_eq!(all.choices, choices);
        assert_eq!(all.wrapped, [Wrapped(None), Wrapped(Some(Point { x: 3 }))]);
        assert_eq!((all.pair, all.tuple), (Pair(4, Point { x: 5 }), (6, Point { x: 7 })));
        assert_eq!((all.anything, all.text.get()), (json!([[], { "a": [1] }]), "[ 1, [2] ]"));
        assert_eq!((&*all.borrowed, all.nothing, &all.map["k\""]), ("b", (), &Point { x: 8 }));

        for (bad, place) in [
            ("{\"choices\":[\"Nothing\",{\"Held\":[1]}]}", "choices.1"),
            ("{\"choices\":[{\"Two\":[1,[2]]}]}", "choices.0.1"),
            ("{\"choices\":[{\"Named\":[1,{\"x\":2}]}]}", "choices.0"),
            ("{\"choices\":[{\"Named\":{\"x\":1,\"point\":[2]}}]}", "choices.0.point"),
            ("{\"wrapped\":[[3]]}", "wrapped.0"),
            ("{\"pair\":[4,[5]]}", "pair.1"),
            ("{\"tuple\":[6,[7]]}", "tuple.1"),
            ("{\"map\":{\"k\\\"\":[8]}}", "map.k\""),
        ] {
            let said = serde_json::from_str::<Objects<All<'_>>>(bad).unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("{place}: a list, where an object is expected")),
                "{bad}: {said}"
            );
        }
    }
}
