package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// How much is written at a time.
const chunk = 64 * 1024

// Two periods of random bytes: any chunk of an endless body is a slice of them.
var pattern = func() []byte {
	period := make([]byte, 65_521)
	rand.New(rand.NewSource(1)).Read(period)
	return append(append([]byte(nil), period...), append(period, period...)...)
}()

func newHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/events/next", nextEvent)
	mux.HandleFunc("/ws", echoMessages)
	mux.HandleFunc("/download", download)
	mux.HandleFunc("/upload", upload)
	mux.HandleFunc("/one-write", oneWrite)
	mux.HandleFunc("/hold", hold)
	mux.HandleFunc("/release", release)
	mux.HandleFunc("/open", openStreams)
	mux.HandleFunc("/stats", func(w http.ResponseWriter, _ *http.Request) {
		stats.change(func() { answer(w, stats) })
	})
	return mux
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // whoever asked may be gone
}

func number(r *http.Request, name string) int64 {
	value, _ := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
	return value
}

// echo answers with the body of the request, the status that its query names and what it said in X-Ask.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Host", r.Host)
	for _, value := range r.Header.Values("X-Ask") {
		w.Header().Add("X-Answer", value)
	}
	if status := number(r, "status"); status != 0 {
		w.WriteHeader(int(status))
	}
	_, _ = io.Copy(w, r.Body)
}

var published = make(chan string)

// events sends each text that nextEvent gets as an event.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for text := "hello"; text != "end"; {
		fmt.Fprintf(w, "data: %s\n\n", text)
		w.(http.Flusher).Flush()
		select {
		case text = <-published:
		case <-r.Context().Done():
			return
		}
	}
}

func nextEvent(_ http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	select {
	case published <- string(text):
	case <-r.Context().Done():
	}
}

func echoMessages(w http.ResponseWriter, r *http.Request) {
	// With its own check of Origin against Host, as browsers' WebSockets need it.
	upgrader := websocket.Upgrader{}
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer socket.Close()
	for {
		kind, message, err := socket.ReadMessage()
		if err != nil || socket.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func download(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	for left, at := number(r, "bytes"), int64(0); left > 0; {
		size := int64(chunk)
		if left < size {
			size = left
		}
		start := at % 65_521
		piece := pattern[start : start+size]
		sum.Write(piece)
		if _, err := w.Write(piece); err != nil {
			return
		}
		left, at = left-size, at+size
	}
	stats.change(func() { stats.Sent = hex.EncodeToString(sum.Sum(nil)) })
}

// oneWrite gives all of its body to the stream in a single call.
func oneWrite(w http.ResponseWriter, r *http.Request) {
	body := make([]byte, number(r, "bytes"))
	for at := 0; at < len(body); at += 65_521 {
		copy(body[at:], pattern[:65_521])
	}
	sum := sha256.Sum256(body)
	stats.change(func() { stats.Sent = hex.EncodeToString(sum[:]) })
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	_, _ = w.Write(body)
}

func upload(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	bytes, err := io.CopyBuffer(sum, r.Body, make([]byte, chunk))
	answer(w, map[string]any{"bytes": bytes, "sha256": hex.EncodeToString(sum.Sum(nil)), "complete": err == nil})
}

var holds = struct {
	sync.Mutex
	keys map[string]chan struct{}
}{keys: map[string]chan struct{}{}}

func holdOf(r *http.Request) chan struct{} {
	key := r.URL.Query().Get("key")
	if holds.keys[key] == nil {
		holds.keys[key] = make(chan struct{})
	}
	return holds.keys[key]
}

// hold answers "begin", and "end" when its key is released.
func hold(w http.ResponseWriter, r *http.Request) {
	holds.Lock()
	released := holdOf(r)
	holds.Unlock()
	if number(r, "begin") != 0 {
		fmt.Fprintln(w, "begin")
		w.(http.Flusher).Flush()
	}
	stats.change(func() { stats.Held++ })
	defer stats.change(func() { stats.Held-- })
	select {
	case <-released:
		fmt.Fprintln(w, "end")
	case <-r.Context().Done():
	}
}

func release(_ http.ResponseWriter, r *http.Request) {
	holds.Lock()
	defer holds.Unlock()
	close(holdOf(r))
	delete(holds.keys, r.URL.Query().Get("key"))
}

// openStreams opens streams towards the cloud, one after the other, and says what became of them.
func openStreams(w http.ResponseWriter, r *http.Request) {
	session, err := sessionOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	outcomes := map[string]int{}
	for count := number(r, "streams"); count > 0; count-- {
		outcomes[openStream(session)]++
	}
	answer(w, outcomes)
}

func openStream(session *yamux.Session) string {
	stream, err := session.OpenStream()
	if err != nil {
		return "not opened: " + err.Error()
	}
	defer stream.Close()
	_ = stream.SetDeadline(time.Now().Add(10 * time.Second))
	// The reset may come before the request is written.
	_, _ = io.WriteString(stream, "GET / HTTP/1.1\r\nHost: cloud\r\n\r\n")
	count, err := stream.Read(make([]byte, 1024))
	return fmt.Sprintf("%d bytes, %v", count, err)
}
