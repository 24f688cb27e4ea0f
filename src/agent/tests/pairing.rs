use super::*;

const CODE: &str = "CANA-RY22";

/// Prepares an agent with a fresh state directory while the cloud gives these answers.
async fn pair(answers: &[&str]) -> (Result<Agent, AgentError>, Vec<String>, tempfile::TempDir) {
    let cloud = Cloud::start().await;
    let temp = tempfile::tempdir().expect("a directory");
    let config = AgentConfig {
        pair: Some(CODE.into()),
        ..config(Some(cloud.addr), nobody().await, temp.path())
    };
    let serving = async {
        let mut requests = Vec::new();
        for answer in answers {
            requests.push(cloud.answer(answer).await);
        }
        requests
    };
    let preparing = Agent::prepare(config, Clock::system());
    let (agent, requests) = tokio::join!(within(preparing), serving);
    (agent, requests, temp)
}

async fn failure(answer: &str) -> AgentError {
    let (agent, _, temp) = pair(&[answer]).await;
    let error = agent.err().expect("not paired");
    let left = std::fs::read_dir(temp.path()).expect("readable").count();
    assert_eq!(left, 0, "nothing stays behind");
    let told = format!("{error} {error:?}");
    assert!(!told.contains(CODE) && !told.contains(TOKEN), "{told}");
    error
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn paired(device_id: &DeviceId) -> String {
    let body = serde_json::json!({
        "device_id": device_id, "token": TOKEN, "tunnel_url": "ws://127.0.0.1:3800",
    });
    // More than one read brings.
    answer("200 OK", &format!("{body}{}", " ".repeat(40_000)))
}

#[tokio::test]
async fn a_code_becomes_an_identity_that_is_kept() {
    let id = DeviceId::random();
    let (agent, requests, temp) = pair(&[&paired(&id)]).await;
    assert_eq!(*agent.expect("paired").device_id(), id);
    let (head, body) = requests[0].split_once("\r\n\r\n").expect("a request");
    assert!(head.starts_with("POST /api/pairing/exchange HTTP/1.1\r\n"));
    assert!(head.contains("content-type: application/json"));
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["code"], CODE);
    assert_eq!(body["device"]["os"], std::env::consts::OS);
    assert_eq!(body["device"]["agent_version"], env!("CARGO_PKG_VERSION"));
    // From now on neither cloud nor code is needed, and a code is not used.
    let again = AgentConfig {
        pair: Some("WXYZ-2345".into()),
        ..config(None, nobody().await, temp.path())
    };
    let agent = Agent::prepare(again, Clock::system()).await;
    assert_eq!(*agent.expect("still paired").device_id(), id);
}

#[tokio::test]
async fn a_cloud_that_cannot_answer_yet_is_asked_again() {
    let id = DeviceId::random();
    let unavailable = answer("503 Service Unavailable", "");
    let (agent, requests, _temp) = pair(&[&unavailable, &unavailable, &paired(&id)]).await;
    assert_eq!(*agent.expect("paired").device_id(), id);
    assert_eq!(requests.len(), 3);
}

#[tokio::test]
async fn a_code_that_may_be_used_up_is_said_to_be() {
    let invalid = answer("404 Not Found", "{\"code\":\"pairing_code_invalid\"}");
    let (agent, _, _temp) = pair(&["", &invalid]).await;
    let told = agent.err().expect("not paired").to_string();
    assert!(told.contains("may have used it"), "{told}");
}

#[tokio::test]
async fn definite_answers_are_told_apart() {
    let invalid = answer("404 Not Found", "{\"code\":\"pairing_code_invalid\"}");
    let error = failure(&invalid).await;
    let pairing = |error: AgentError| match error {
        AgentError::Pairing(error) => error,
        other => panic!("{other}"),
    };
    assert!(error.to_string().contains("wrong, used or expired"));
    assert!(matches!(pairing(error), PairingError::CodeInvalid("")));
    let error = pairing(failure(&answer("404 Not Found", "<html>")).await);
    assert!(matches!(error, PairingError::Unexpected(_, 404)), "{error}");
    let error = pairing(failure("HTTP/1.1 429 No\r\nRetry-After: 42\r\n\r\n").await);
    assert!(matches!(error, PairingError::TooMany(42)), "{error}");
    let error = pairing(failure(&answer("422 No", "{}")).await);
    assert!(matches!(error, PairingError::Unexpected(_, 422)), "{error}");
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_no_identity() {
    let id = DeviceId::random();
    for wrong in [
        paired(&id).replace("ws://127.0.0.1", "ws://10.0.0.1:"),
        answer("200 OK", &format!("{{\"token\":[\"{TOKEN}\"]}}")),
        answer("200 OK", &"x".repeat(70_000)),
    ] {
        let error = failure(&wrong).await;
        let unexpected = matches!(error, AgentError::Pairing(PairingError::Unexpected(_, 200)));
        assert!(unexpected, "{error}");
    }
}

#[tokio::test]
async fn the_code_does_not_follow_a_redirect() {
    let (elsewhere, addr) = listen().await;
    let answer = format!("HTTP/1.1 308 Moved\r\nLocation: http://{addr}/x?y\r\n\r\n");
    let told = failure(&answer).await.to_string();
    assert!(
        told.contains(&format!("redirects to http://{addr},")),
        "{told}"
    );
    assert!(futures_util::FutureExt::now_or_never(elsewhere.accept()).is_none());
}

#[tokio::test]
async fn a_state_that_cannot_be_kept_costs_no_code() {
    let cloud = Cloud::start().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let config = AgentConfig {
        pair: Some(CODE.into()),
        ..config(Some(cloud.addr), nobody().await, &file.path().join("state"))
    };
    let error = Agent::prepare(config, Clock::system()).await;
    let error = error.err().expect("a file is no directory");
    assert!(matches!(error, AgentError::State(_)), "{error}");
    assert!(futures_util::FutureExt::now_or_never(cloud.listener.accept()).is_none());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let temp = tempfile::tempdir().expect("a directory");
    let cloud = nobody().await;
    for (cloud, code, missing) in [
        (None, None, "--cloud URL and --pair CODE"),
        (Some(cloud), None, "--pair CODE"),
        (None, Some(CODE), "--cloud URL"),
    ] {
        let config = AgentConfig {
            pair: code.map(Into::into),
            ..config(cloud, nobody().await, temp.path())
        };
        let error = Agent::prepare(config, Clock::system()).await;
        let told = error.err().expect("not paired").to_string();
        assert!(told.contains(missing), "{told}");
    }
}

#[tokio::test]
async fn an_origin_that_is_the_cloud_is_refused_when_paired_too() {
    let id = DeviceId::random();
    let cloud = Cloud::start().await;
    let temp = tempfile::tempdir().expect("a directory");
    let first = AgentConfig {
        pair: Some(CODE.into()),
        ..config(Some(cloud.addr), nobody().await, temp.path())
    };
    let answer = paired(&id);
    let (agent, _) = tokio::join!(
        Agent::prepare(first, Clock::system()),
        cloud.answer(&answer)
    );
    agent.expect("paired");
    let looping = config(None, cloud.addr, temp.path());
    let error = Agent::prepare(looping, Clock::system()).await;
    let error = error.err().expect("a loop");
    assert!(matches!(error, AgentError::Loop(_)), "{error}");
}
