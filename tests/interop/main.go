// Program interop is a device of the usual Go parts: net/http over hashicorp/yamux over gorilla/websocket. The tests
// reach it through the cloud, and beside the cloud on a listener of its own.
//
//	interop --state FILE [--cloud URL --pair CODE] [--keepalive 1s] [--latency 20ms]
//
// device.go is what a device needs; the rest is what the tests ask it to do.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	state := flag.String("state", "", "file of the device's identity")
	cloud := flag.String("cloud", "", "URL of the cloud to pair with")
	code := flag.String("pair", "", "pairing code")
	keepalive := flag.Duration("keepalive", 30*time.Second, "time between two yamux pings")
	latency := flag.Duration("latency", 0, "by which everything to the cloud is delayed")
	flag.Parse()

	id, err := identity(*state, *cloud, *code)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("device", id.DeviceID)
	handler := newHandler()
	beside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("beside", beside.Addr())
	go func() { log.Fatal(http.Serve(beside, handler)) }()

	config := yamux.DefaultConfig()
	config.KeepAliveInterval = *keepalive
	server := &http.Server{Handler: handler, ConnContext: keepStream}
	keep(id, func(tunnel io.ReadWriteCloser) error {
		stats.begin()
		err := serve(newTap(tunnel, *latency), config, server)
		stats.end(err)
		return err
	})
}

// identity reads the device's identity, or pairs it and writes it down.
func identity(file, cloud, code string) (id Identity, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &id)
		return id, err
	}
	if !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	if id, err = pair(strings.TrimSuffix(cloud, "/"), code); err != nil {
		return id, err
	}
	id.TunnelURL = strings.TrimSuffix(id.TunnelURL, "/")
	if text, err = json.Marshal(id); err != nil {
		return id, err
	}
	return id, os.WriteFile(file, text, 0o600)
}

type streamKey struct{}

func keepStream(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, streamKey{}, conn)
}

// sessionOf is the yamux session that a request came through.
func sessionOf(r *http.Request) (*yamux.Session, error) {
	stream, ok := r.Context().Value(streamKey{}).(*yamux.Stream)
	if !ok {
		return nil, errors.New("this request came beside the cloud")
	}
	return stream.Session(), nil
}

// tap lies between yamux and the WebSocket: it reads along what yamux sends, and delays it.
type tap struct {
	io.ReadWriteCloser
	bodyLeft int
	latency  time.Duration
	queue    chan delayed
	done     chan struct{}
}

type delayed struct {
	at    time.Time
	bytes []byte
}

func newTap(tunnel io.ReadWriteCloser, latency time.Duration) *tap {
	if ws, ok := tunnel.(*stream); ok {
		answer := ws.CloseHandler()
		ws.SetCloseHandler(func(code int, text string) error {
			stats.closed(code)
			return answer(code, text)
		})
	}
	t := &tap{ReadWriteCloser: tunnel, latency: latency, queue: make(chan delayed, 64), done: make(chan struct{})}
	if latency > 0 {
		go t.sendLater()
		if ws, ok := tunnel.(*stream); ok {
			ws.SetPingHandler(func(nonce string) error {
				time.AfterFunc(latency, func() {
					pong := []byte(nonce)
					// A tunnel that has ended needs no answer.
					_ = ws.WriteControl(websocket.PongMessage, pong, time.Now().Add(time.Second))
				})
				return nil
			})
		}
	}
	return t
}

// Write gets a header or a body at a time, from one goroutine.
func (t *tap) Write(p []byte) (int, error) {
	if t.bodyLeft > 0 {
		t.bodyLeft -= len(p)
	} else {
		t.bodyLeft = stats.frame(p)
	}
	if t.latency == 0 {
		return t.ReadWriteCloser.Write(p)
	}
	select {
	case t.queue <- delayed{time.Now().Add(t.latency), append([]byte(nil), p...)}:
		return len(p), nil
	case <-t.done:
		return 0, net.ErrClosed
	}
}

func (t *tap) sendLater() {
	defer close(t.done)
	for next := range t.queue {
		time.Sleep(time.Until(next.at))
		if _, err := t.ReadWriteCloser.Write(next.bytes); err != nil {
			return // reading fails as well, which ends the session
		}
	}
}
