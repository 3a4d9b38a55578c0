//! The characters of a file for the YAML parser: those of its own input for texts, with less work for each value.
//!
//! The parser makes room for as many characters as the input says can be had at once, for every single value: 128 by
//! itself, which grows each of some hundred thousand buffers a second time. Nothing here knows YAML.

use saphyr_parser::input::SkipTabs;
use saphyr_parser::{Input, StrInput};

/// Characters that are asked for at once: as many as fit a fresh buffer of the parser after the first.
const AT_ONCE: usize = 24;

/// A text.
pub(super) struct Text<'a>(StrInput<'a>);

impl<'a> Text<'a> {
    pub(super) fn new(text: &'a str) -> Text<'a> {
        Text(StrInput::new(text))
    }
}

/// Methods that are those of the input for texts: some have faster forms there than the trait gives them.
macro_rules! same {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $out:ty;)*
     mut $(fn $change:ident(&mut self $(, $with:ident: $kind:ty)*) $(-> $result:ty)?;)*) => {
        $(#[inline] fn $name(&self $(, $arg: $type)*) -> $out { self.0.$name($($arg),*) })*
        $(#[inline] fn $change(&mut self $(, $with: $kind)*) $(-> $result)? { self.0.$change($($with),*) })*
    };
}

impl Input for Text<'_> {
    #[inline]
    fn bufmaxlen(&self) -> usize {
        AT_ONCE
    }

    #[inline]
    fn next_can_be_plain_scalar(&self, in_flow: bool) -> bool {
        // Nothing that comes after a letter or a digit makes a difference.
        self.0.peek().is_ascii_alphanumeric() || self.0.next_can_be_plain_scalar(in_flow)
    }

    same! {
        fn buflen(&self) -> usize;
        fn buf_is_empty(&self) -> bool;
        fn peek(&self) -> char;
        fn peek_nth(&self, n: usize) -> char;
        fn peek_opt(&self) -> Option<char>;
        fn next_char_is(&self, c: char) -> bool;
        fn nth_char_is(&self, n: usize, c: char) -> bool;
        fn next_2_are(&self, c1: char, c2: char) -> bool;
        fn next_3_are(&self, c1: char, c2: char, c3: char) -> bool;
        fn next_is_document_indicator(&self) -> bool;
        fn next_is_document_start(&self) -> bool;
        fn next_is_document_end(&self) -> bool;
        fn next_is_blank_or_break(&self) -> bool;
        fn next_is_blank_or_breakz(&self) -> bool;
        fn next_is_blank(&self) -> bool;
        fn next_is_break(&self) -> bool;
        fn next_is_breakz(&self) -> bool;
        fn next_is_z(&self) -> bool;
        fn next_is_flow(&self) -> bool;
        fn next_is_digit(&self) -> bool;
        fn next_is_alpha(&self) -> bool;
        mut
        fn lookahead(&mut self, count: usize);
        fn raw_read_ch(&mut self) -> char;
        fn raw_read_non_breakz_ch(&mut self) -> Option<char>;
        fn skip(&mut self);
        fn skip_n(&mut self, count: usize);
        fn look_ch(&mut self) -> char;
        fn skip_ws_to_eol(&mut self, skip_tabs: SkipTabs) -> (usize, Result<SkipTabs, &'static str>);
        fn skip_while_non_breakz(&mut self) -> usize;
        fn skip_while_blank(&mut self) -> usize;
        fn fetch_while_is_alpha(&mut self, out: &mut String) -> usize;
        fn fetch_while_is_yaml_non_space(&mut self, out: &mut String) -> usize;
    }
}
