//! What all pages have in common.

use std::sync::Arc;

use axum::http::HeaderMap;
use maud::{DOCTYPE, Markup, html};

use super::LANG_COOKIE;
use crate::admin::access::{cookie, text};

/// The languages of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lang {
    En,
    Zh,
}

impl Lang {
    /// What was asked for now, or before, or what the browser prefers.
    pub(super) fn of(headers: &HeaderMap, asked: Option<&str>) -> Self {
        let asked = asked.or_else(|| cookie(headers, LANG_COOKIE));
        match asked {
            Some("zh") => Self::Zh,
            Some("en") => Self::En,
            Some(_) | None => Self::preferred(text(headers, "accept-language").unwrap_or_default()),
        }
    }

    /// The first of ours in the browser's list; its weights are in sequence in all browsers.
    fn preferred(list: &str) -> Self {
        let first = list
            .split(',')
            .find_map(|entry| match entry.trim().get(..2)? {
                "zh" => Some(Self::Zh),
                "en" => Some(Self::En),
                _ => None,
            });
        first.unwrap_or(Self::En)
    }

    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh",
        }
    }

    /// The one or the other.
    pub(super) const fn t(self, en: &'static str, zh: &'static str) -> &'static str {
        match self {
            Self::En => en,
            Self::Zh => zh,
        }
    }
}

/// A page's address, with what is asked for there.
pub(super) fn address<'a>(
    path: &str,
    query: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut text = form_urlencoded::Serializer::for_suffix(format!("{path}?"), path.len() + 1);
    text.extend_pairs(query).finish()
}

/// Around a page.
pub(super) struct Frame {
    pub(super) lang: Lang,
    pub(super) path: &'static str,
    /// What was asked for, so that it is asked for in the other language, too.
    pub(super) query: Vec<(String, String)>,
    pub(super) operator: Option<Arc<str>>,
    pub(super) may_log_in: bool,
}

impl Frame {
    /// Whoever looks may act, too.
    pub(super) fn may_act(&self) -> bool {
        self.operator.is_some()
    }

    pub(super) fn t(&self, en: &'static str, zh: &'static str) -> &'static str {
        self.lang.t(en, zh)
    }

    /// This page, in that language.
    fn in_lang(&self, lang: Lang) -> String {
        let others = self.query.iter().filter(|(name, _)| name != "lang");
        let others = others.map(|(name, value)| (name.as_str(), value.as_str()));
        address(self.path, others.chain([("lang", lang.code())]))
    }

    /// The whole page.
    pub(super) fn around(&self, body: Markup) -> Markup {
        let link = |path: &'static str, words: &'static str| {
            let here = (self.path == path).then_some("page");
            html! { a href=(path) aria-current=[here] { (words) } }
        };
        let code = match self.lang {
            Lang::En => "en",
            Lang::Zh => "zh-CN",
        };
        html! {
            (DOCTYPE)
            html lang=(code) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { "wdt-cancel-worker" }
                    link rel="stylesheet" href="/style.css";
                    @if self.path == "/" {
                        noscript { meta http-equiv="refresh" content="10"; }
                        script src="/live.js" defer {}
                    }
                }
                body {
                    header {
                        strong { "wdt-cancel-worker" }
                        nav {
                            (link("/", self.t("Now", "现状")))
                            (link("/story", self.t("Search", "查询")))
                            (link("/dead", self.t("Dead letters", "死信")))
                        }
                        div.who {
                            @match self.lang {
                                Lang::En => a href=(self.in_lang(Lang::Zh)) lang="zh-CN" { "中文" },
                                Lang::Zh => a href=(self.in_lang(Lang::En)) lang="en" { "English" },
                            }
                            @match &self.operator {
                                Some(operator) => form method="post" action="/logout" {
                                    span { (operator) }
                                    button { (self.t("Log out", "退出")) }
                                },
                                None => @if self.may_log_in {
                                    a href="/login" { (self.t("Log in", "登录")) }
                                },
                            }
                        }
                    }
                    main { (body) }
                    footer {
                        span.lost { (self.t("No connection to the worker; this is old.", "与进程的连接已断开，数据已过时。")) }
                        span { (self.t("Times are UTC.", "时间均为 UTC。")) }
                        a href="/readyz" { "readyz" } a href="/metrics" { "metrics" }
                        span { (env!("CARGO_PKG_VERSION")) }
                    }
                }
            }
        }
    }
}

/// The form to log in, and why it is shown.
pub(super) fn login(lang: Lang, why: &str, may: bool) -> Markup {
    html! {
        section.narrow {
            h1 { (lang.t("Log in", "登录")) }
            @if !why.is_empty() { p.notice { (why) } }
            @if may {
                form.stack method="post" action="/login" {
                    label { (lang.t("Your name, for the log", "您的姓名（写入日志）"))
                        input name="name" autocomplete="username" maxlength="40" required; }
                    label { (lang.t("Token (admin.token)", "令牌（admin.token）"))
                        input name="token" type="password" autocomplete="current-password" required; }
                    button.main { (lang.t("Log in", "登录")) }
                }
            }
        }
    }
}

/// A few words and the way back.
pub(super) fn message(words: &str) -> Markup {
    html! {
        section.narrow {
            p.notice { (words) }
            p { a href="/" { "←" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_is_the_one_asked_for_or_the_browsers() {
        let check =
            |header: &str, expected| assert_eq!(Lang::preferred(header), expected, "{header}");
        check("zh-CN,zh;q=0.9,en;q=0.8", Lang::Zh);
        check("de, en;q=0.7, zh;q=0.3", Lang::En);
        check("fr", Lang::En);
        check("", Lang::En);
        check("单", Lang::En);
        let mut headers = HeaderMap::new();
        headers.insert("accept-language", "zh".parse().expect("a header"));
        assert_eq!(Lang::of(&headers, None), Lang::Zh);
        headers.insert("cookie", "a=b; wdt_lang=en".parse().expect("a header"));
        assert_eq!(Lang::of(&headers, None), Lang::En);
        assert_eq!(Lang::of(&headers, Some("zh")), Lang::Zh);
    }
}
