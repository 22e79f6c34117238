"""Published forms of secrets: tokens with a prefix of their own, private keys, passwords in URLs.

Each row names where its form is published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FORMATS", "Format"]

_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"
"""Before a token: no letter or digit, or an escape such as `\\n` in code that stands in a text."""
_END = r"(?![A-Za-z0-9])"


@dataclass(frozen=True, slots=True)
class Format:
    """A published form of a secret.

    Attributes:
        name: what it is.
        needles: one of these stands in every text that holds one, exactly so.
        pattern: the secret; only its group `secret` where it has one.
    """

    name: str
    needles: tuple[str, ...]
    pattern: re.Pattern[str]


def _token(name: str, body: str, *needles: str) -> Format:
    return Format(name, needles, re.compile(f"{_START}{body}{_END}"))


def _around(name: str, pattern: str, *needles: str) -> Format:
    return Format(name, needles, re.compile(pattern))


_AWS_KINDS = ("AKIA", "ASIA", "ABIA", "ACCA")

FORMATS: tuple[Format, ...] = (
    # AWS IAM user guide, "IAM identifiers", unique ID prefixes; 16 characters follow.
    _token("aws-access-key", rf"(?:{'|'.join(_AWS_KINDS)})[A-Z0-9]{{16}}", *_AWS_KINDS),
    # The same guide, "Manage access keys": the secret of 40 characters, beside its id as in the file handed out.
    Format(
        "aws-secret-key",
        _AWS_KINDS,
        re.compile(
            rf"(?:{'|'.join(_AWS_KINDS)})[A-Z0-9]{{16}}[^\w/+]{{1,9}}(?:[A-Za-z_]{{1,25}}[^\w/+]{{1,9}}){{0,4}}"
            r"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
        ),
    ),
    # AWS, "Actions and API keys for Amazon Bedrock": the prefix of long-term keys.
    _token("aws-bedrock-key", r"ABSK[A-Za-z0-9+/]{100,}={0,2}", "ABSK"),
    # GitHub docs, "About authentication to GitHub", token formats; GitHub blog, 5 April 2021.
    _token(
        "github-token", r"gh[pousr]_[A-Za-z0-9]{30,255}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"
    ),
    _token("github-token", r"github_pat_[A-Za-z0-9_]{50,255}", "github_pat_"),
    # GitLab docs, "Token overview", token prefixes.
    _token(
        "gitlab-token",
        r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|oas|ffct)-[\w-]{20,300}(?:\.[\w-]{2,40})*",
        "gl",
    ),
    # Slack docs, "Token types"; webhooks: "Sending messages using incoming webhooks".
    _token("slack-token", r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,250}", "xox"),
    _token("slack-token", r"xapp-\d-[A-Za-z0-9-]{10,250}", "xapp-"),
    _around(
        "slack-webhook",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<secret>[\w+/-]{20,120})",
        "hooks.slack",
    ),
    # Discord developer docs, "Reference", authentication (bot tokens), and "Webhook resource".
    _token("discord-token", r"[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,42}", "."),
    _around(
        "discord-webhook",
        r"discord(?:app)?\.com/api/webhooks/(?P<secret>\d{17,20}/[\w-]{40,100})",
        "api/webhooks/",
    ),
    # Telegram, "Bots: an introduction for developers", authorization tokens.
    _token("telegram-token", r"\d{8,10}:AA[\w-]{32,34}(?![\w-])", ":AA"),
    # Stripe docs, "API keys" and "Webhooks"; keys that begin with pk_ are meant to be published.
    _token(
        "stripe-key",
        r"(?:sk|rk)_(?:live|test|prod)_[A-Za-z0-9]{10,250}",
        "_live_",
        "_test_",
        "_prod_",
    ),
    _token("stripe-webhook-secret", r"whsec_[A-Za-z0-9+/=]{24,250}", "whsec_"),
    # OpenAI platform docs, "Authentication"; Anthropic docs, "API overview"; both begin with sk-.
    _token("ai-key", r"sk-(?:ant-|proj-|svcacct-|admin-|or-v1-|lf-)[\w-]{20,250}", "sk-"),
    _token("ai-key", r"sk-[A-Za-z0-9]{20,100}", "sk-"),
    # Quickstarts of Groq, Perplexity, xAI, Replicate: prefixes of their keys.
    _token(
        "ai-key",
        r"(?:gsk_[A-Za-z0-9]{40,60}|pplx-[A-Za-z0-9]{40,60}|"
        r"xai-[A-Za-z0-9]{60,100}|r8_[A-Za-z0-9]{30,45})",
        "gsk_",
        "pplx-",
        "xai-",
        "r8_",
    ),
    # Google Cloud docs, "Manage API keys"; Google Identity, "Using OAuth 2.0".
    _token("google-api-key", r"AIza[\w-]{35}", "AIza"),
    _token(
        "google-oauth",
        r"(?:GOCSPX-[\w-]{24,40}|ya29\.[\w-]{20,500}|1//0[\w-]{30,250})",
        "GOCSPX-",
        "ya29.",
        "1//0",
    ),
    # Hugging Face Hub docs, "User access tokens".
    _token(
        "huggingface-token",
        r"(?:hf_[A-Za-z0-9]{30,50}|api_org_[A-Za-z0-9]{30,50})",
        "hf_",
        "api_org_",
    ),
    # Registries: npm docs, "About access tokens"; PyPI help, "API tokens" (a macaroon's base64);
    # RubyGems guides, "API key scopes"; crates (RFC 2947); NuGet docs, "Scoped API keys"; Docker docs.
    _token("npm-token", r"npm_[A-Za-z0-9]{36,50}", "npm_"),
    _token("pypi-token", r"pypi-AgE[\w-]{50,1000}", "pypi-AgE"),
    _token("rubygems-key", r"rubygems_[a-f0-9]{48}", "rubygems_"),
    _token("cargo-token", r"cio[A-Za-z0-9]{32}", "cio"),
    _token("nuget-key", r"oy2[a-z0-9]{43}", "oy2"),
    _token("docker-token", r"dckr_(?:pat|oat)_[\w-]{27,60}", "dckr_"),
    # Mail and messages: SendGrid docs, "API keys"; Mailgun docs, "Authentication"; Mailchimp, "About
    # API keys"; Twilio docs, "API keys" (SK is the key's name, its secret has no form of its own);
    # Brevo docs, "Authentication schemes"; Resend docs.
    _token("sendgrid-key", r"SG\.[\w-]{16,32}\.[\w-]{30,64}", "SG."),
    _token("mailgun-key", r"key-[a-z0-9]{32}", "key-"),
    _token("mailchimp-key", r"[a-f0-9]{32}-us\d{1,2}", "-us"),
    _token("twilio-key", r"(?:SK|AC)[a-f0-9]{32}", "SK", "AC"),
    _token("brevo-key", r"xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}", "xkeysib-"),
    _token("resend-key", r"re_[A-Za-z0-9]{6,12}_[A-Za-z0-9]{20,40}", "re_"),
    # Clouds and hosting: DigitalOcean API reference, "Authentication"; Heroku Platform API,
    # "Prefixes"; Netlify, Fly and Render docs; Cloudflare docs, "Origin CA keys"; Alibaba Cloud docs,
    # "AccessKey"; Tencent Cloud docs, "Access key".
    _token("digitalocean-token", r"do[opr]_v1_[a-f0-9]{64}", "_v1_"),
    _token(
        "hosting-token",
        r"(?:HRKU-[\w-]{30,70}|nfp_[A-Za-z0-9]{36,50}|"
        r"rnd_[A-Za-z0-9]{28,40}|FlyV1 fm\d_[A-Za-z0-9+/=,_]{80,2000})",
        "HRKU-",
        "nfp_",
        "rnd_",
        "FlyV1",
    ),
    _token("cloudflare-origin-key", r"v1\.0-[a-f0-9]{24}-[a-f0-9]{100,200}", "v1.0-"),
    _token("alibaba-key", r"LTAI[A-Za-z0-9]{12,26}", "LTAI"),
    _token("tencent-key", r"AKID[A-Za-z0-9]{32}", "AKID"),
    # Microsoft Learn, "Configure Azure Storage connection strings", "Grant limited access with SAS",
    # and Microsoft Purview, "Azure AD client secret": three characters, a digit, Q~ and 31 or more.
    _around(
        "azure-account-key",
        r"(?i:AccountKey|SharedAccessKey)=(?P<secret>[A-Za-z0-9+/]{40,100}={0,2})",
        "AccountKey",
        "SharedAccessKey",
    ),
    _around("azure-sas", r"[?&]sig=(?P<secret>[A-Za-z0-9%+/]{40,120}={0,2})", "sig="),
    _token("azure-client-secret", r"[\w~.-]{3}\dQ~[\w~.-]{31,34}", "Q~"),
    # Developer tools: Databricks docs, "Personal access tokens"; HashiCorp Vault docs, "Tokens";
    # Terraform docs, "API tokens"; Grafana docs, "Service accounts"; New Relic docs, "API keys"; Sentry
    # docs, "Auth tokens"; Linear, Notion, Airtable, Figma, Postman, Doppler, Supabase, Pulumi and
    # PlanetScale developer docs, each on personal or service tokens; Dynatrace docs, "Token format".
    _token("databricks-token", r"dapi[a-f0-9]{32}(?:-\d)?", "dapi"),
    _token("vault-token", r"hv[sbr]\.[\w-]{20,300}", "hvs.", "hvb.", "hvr."),
    _token("terraform-token", r"[A-Za-z0-9]{14}\.atlasv1\.[\w-]{60,90}", ".atlasv1."),
    _token("grafana-token", r"gl(?:c|sa)_[A-Za-z0-9+/_=]{32,250}", "glc_", "glsa_"),
    _token("newrelic-key", r"NRAK-[A-Z0-9]{27}", "NRAK-"),
    _token("sentry-token", r"sntry[su]_[A-Za-z0-9+/=_]{40,300}", "sntrys_", "sntryu_"),
    _token("linear-key", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,64}", "lin_"),
    _token("notion-token", r"(?:secret_[A-Za-z0-9]{43}|ntn_[A-Za-z0-9]{40,50})", "secret_", "ntn_"),
    _token("airtable-token", r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}", "pat"),
    _token("figma-token", r"figd_[\w-]{35,50}", "figd_"),
    _token("postman-key", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}", "PMAK-"),
    _token("doppler-token", r"dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{40,64}", "dp."),
    _token("supabase-token", r"(?:sbp_[a-f0-9]{40}|sb_secret_[\w-]{20,60})", "sbp_", "sb_secret_"),
    _token("pulumi-token", r"pul-[a-f0-9]{40}", "pul-"),
    _token("planetscale-token", r"pscale_(?:tkn|pw|oauth)_[\w.-]{32,64}", "pscale_"),
    _token("dynatrace-token", r"dt0[a-z]\d{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}", "dt0"),
    # Shops and payments: Shopify docs, "Access tokens"; Square docs, "Access tokens"; Braintree docs,
    # "Access token"; Adyen docs, "API key"; Flutterwave docs, "Authentication".
    _token(
        "shopify-token",
        r"shp(?:at|ca|pa|ss|ua)_[a-fA-F0-9]{32}",
        "shpat_",
        "shpca_",
        "shppa_",
        "shpss_",
        "shpua_",
    ),
    _token("square-token", r"(?:sq0[a-z]{3}-[\w-]{22,43}|EAAA[\w-]{60})", "sq0", "EAAA"),
    _token(
        "braintree-token",
        r"access_token\$(?:production|sandbox)\$[a-z0-9]{16}\$[a-f0-9]{32}",
        "access_token$",
    ),
    _token("adyen-key", r"AQE[A-Za-z0-9+/]{40,400}\S{20,250}", "AQE"),
    _token("flutterwave-key", r"FLWSECK(?:_TEST)?-[a-zA-Z0-9]{12,60}(?:-X)?", "FLWSECK"),
    # RFC 7519 (JSON Web Token, compact form): both parts begin with base64url of `{"`.
    _token("jwt", r"eyJ[\w-]{8,2000}\.eyJ[\w-]{8,20000}\.[\w-]{10,10000}", "eyJ"),
    # RFC 7468 and OpenSSH PROTOCOL.key (text between BEGIN and END), OpenPGP (RFC 9580, 6.2), PuTTY's
    # PPK format, age (C2SP age specification). A block that was cut off counts up to its end.
    _around(
        "private-key",
        r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----BEGIN)[\s\S]){0,20000}?"
        r"(?:-----END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        "PRIVATE KEY",
    ),
    _around(
        "private-key",
        r"PuTTY-User-Key-File-\d[\s\S]{0,8000}?Private-MAC: [a-f0-9]{40,64}",
        "PuTTY-User-Key-File-",
    ),
    _token("private-key", r"AGE-SECRET-KEY-1[A-Z0-9]{58}", "AGE-SECRET-KEY-1"),
    # RFC 3986, 3.2.1 (user information): the part between the colon and the at sign.
    _around(
        "password-in-url",
        r"(?<![A-Za-z])[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s:/@\"'<>]{0,100}:"
        r"(?P<secret>[^\s/@\"'<>]{1,200}(?:@(?=[^\s/@\"'<>]*@)[^\s/@\"'<>]{0,200})*)@(?=[\w\[%-])",
        "://",
    ),
    # RFC 6750 (Bearer) and RFC 7617 (Basic).
    _around(
        "authorization",
        r"(?i:\bbearer)\s{1,3}(?P<secret>[A-Za-z0-9._~+/-]{16,2000}={0,2})",
        "earer",
        "EARER",
    ),
    _around(
        "authorization-basic",
        r"(?i:\bauthorization)[\"']?\s{0,2}[:=]\s{0,2}[\"']?(?i:basic)\s{1,3}"
        r"(?P<secret>[A-Za-z0-9+/]{8,500}={0,2})",
        "uthorization",
        "UTHORIZATION",
    ),
    # curl's manual, -u and --user.
    _around(
        "password-in-command",
        r"(?:\s-u|--user)[ =]{1,2}[\"']?[\w.@+-]{1,64}:(?P<secret>[^\s\"'$<{]{4,200})",
        "-u ",
        "--user",
    ),
)
