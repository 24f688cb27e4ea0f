//! The cookie of a login: its attributes, and what is not taken for one.

use jiff::{SignedDuration, Timestamp};

use crate::sign_in::with_other_char;
use crate::support::{
    Anonymous, Browser, LOGIN_COOKIE, TestCloud, eventually, on_both_topologies, text,
};

on_both_topologies![
    cs_01_the_cookies_have_the_attributes_that_protect_them,
    cs_03_every_sign_in_gets_a_new_login,
    cs_04_a_cookie_that_nobody_issued_is_nobody,
    cs_05_a_login_that_is_not_used_is_over,
    cs_05_a_login_is_over_in_any_case_some_day,
    cs_05_a_login_that_is_used_goes_on,
    cs_09_a_doubled_login_cookie_is_nobody,
];

async fn cs_01_the_cookies_have_the_attributes_that_protect_them(cloud: TestCloud) {
    let browser = Browser::new(&cloud);
    let answer = browser
        .navigate("/api/auth/login", "same-origin")
        .send()
        .await;
    let pending = answer.all("set-cookie");
    let [pending] = pending[..] else {
        panic!("one cookie: {answer:?}");
    };
    assert!(pending.contains("edgecloud-pending-"), "{pending}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(pending.contains(attribute), "{pending}");
    }
    let authorize = url::Url::parse(answer.header("location")).expect("a URL");
    let callback = browser.choose(&authorize, "alice").await;
    let answer = browser.open_callback(&callback).await.expect(303);
    let cookies = answer.all("set-cookie");
    let login = cookies
        .iter()
        .find(|cookie| cookie.starts_with(&format!("{LOGIN_COOKIE}=")))
        .expect("the login's cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(login.contains(attribute), "{login}");
    }
    for cookie in cookies {
        assert!(!cookie.to_lowercase().contains("domain="), "{cookie}");
    }
    assert!(answer.header("cache-control").contains("no-store"));
    assert_eq!(answer.header("referrer-policy"), "no-referrer", "OL-21");
}

async fn cs_03_every_sign_in_gets_a_new_login(cloud: TestCloud) {
    let browser = Browser::sign_in(&cloud, "alice").await;
    let (before, cookie) = (browser.me().await, browser.login_cookie());
    browser.sign_in_again("alice").await;
    let (after, new_cookie) = (browser.me().await, browser.login_cookie());
    assert_eq!(before["user"]["id"], after["user"]["id"]);
    assert_ne!(before["login"]["id"], after["login"]["id"]);
    assert_ne!(cookie, new_cookie);

    let old = Browser::new(&cloud);
    old.plant_cookie(browser.host(), LOGIN_COOKIE, &cookie);
    assert!(!old.is_signed_in().await, "the login before is over");
}

async fn cs_04_a_cookie_that_nobody_issued_is_nobody(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = alice.login_cookie();
    let mallory = Browser::new(&cloud);
    for place in [0, cookie.len() / 2, cookie.len() - 1] {
        let forged = with_other_char(&cookie, place);
        mallory.plant_cookie(alice.host(), LOGIN_COOKIE, &forged);
        // The last character may hold spare bits, but then the text is not the one we issued.
        assert!(!mallory.is_signed_in().await, "changed at {place}");
    }
    for junk in ["", "x", "..", "a.b.c", &"A".repeat(4096)] {
        mallory.plant_cookie(alice.host(), LOGIN_COOKIE, junk);
        assert!(!mallory.is_signed_in().await, "{junk:?}");
    }
    assert!(alice.is_signed_in().await);
}

async fn cs_05_a_login_that_is_not_used_is_over(cloud: TestCloud) {
    a_login_is_over_after(&cloud, "idle_expires_at").await;
}

async fn cs_05_a_login_is_over_in_any_case_some_day(cloud: TestCloud) {
    a_login_is_over_after(&cloud, "expires_at").await;
}

async fn a_login_is_over_after(cloud: &TestCloud, end: &str) {
    let alice = Browser::sign_in(cloud, "alice").await;
    let elsewhere = Browser::sign_in(cloud, "alice").await;
    let login = text(&alice.me().await["login"]["id"]);
    let a_minute_ago = Timestamp::now() - SignedDuration::from_secs(60);
    move_end(cloud, &login, end, a_minute_ago);
    // A single process notices within 50 ms what somebody else has changed in its database.
    eventually("the login is over", async || {
        (!alice.is_signed_in().await).then_some(())
    })
    .await;
    assert!(!alice.is_signed_in().await, "no request brings it back");
    assert!(elsewhere.is_signed_in().await, "her other login lives on");
    alice.sign_in_again("alice").await;
    assert!(alice.is_signed_in().await);
}

async fn cs_05_a_login_that_is_used_goes_on(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let login = text(&alice.me().await["login"]["id"]);
    let in_a_minute = Timestamp::now() + SignedDuration::from_secs(60);
    move_end(&cloud, &login, "idle_expires_at", in_a_minute);
    let absolute = end_of(&cloud, &login, "expires_at");
    eventually("its use is noted", async || {
        assert!(alice.is_signed_in().await);
        let idle = end_of(&cloud, &login, "idle_expires_at");
        (idle > in_a_minute.as_millisecond()).then_some(())
    })
    .await;
    assert_eq!(end_of(&cloud, &login, "expires_at"), absolute);
}

/// Logins live for minutes at least, which is too long for a test: an end is moved in the database.
pub fn move_end(cloud: &TestCloud, login: &str, end: &str, to: Timestamp) {
    let sql = format!("UPDATE logins SET {end} = ?1 WHERE id = ?2");
    let changed = cloud
        .database()
        .execute(&sql, (to.as_millisecond(), login))
        .expect("move the login's end");
    assert_eq!(changed, 1);
}

fn end_of(cloud: &TestCloud, login: &str, end: &str) -> i64 {
    let sql = format!("SELECT {end} FROM logins WHERE id = ?1");
    let found = cloud.database().query_row(&sql, [login], |row| row.get(0));
    found.expect("the login is there")
}

async fn cs_09_a_doubled_login_cookie_is_nobody(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let cookie = format!("{LOGIN_COOKIE}={}", alice.login_cookie());
    let me = |cookies: String| {
        let request = Anonymous::of(&cloud).get("/api/auth/me");
        request.header("cookie", &cookies).send()
    };
    me(cookie.clone()).await.expect(200);
    me(format!("theme=dark; {cookie}")).await.expect(200);
    me(format!("{cookie}; {cookie}")).await.expect(401);
    me(format!("{LOGIN_COOKIE}=tossed; {cookie}"))
        .await
        .expect(401);
}
