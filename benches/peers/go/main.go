// Program go-original is the measuring harness's picture of the usual Go design for reaching devices behind NAT:
// net/http and ReverseProxy in front of hashicorp/yamux over a gorilla/websocket connection that the device opens.
//
//	go-original server --tunnel ADDR --http ADDR --tcp ADDR --token-file FILE --cookie-file FILE
//	go-original agent  --tunnel ADDR --origin ADDR --token-file FILE
//
// The server checks for each HTTP request what a product has to check: a signed cookie, the login behind it and whom
// the device belongs to. Raw TCP is spliced into a stream without any check, as other tunnels do.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/hashicorp/yamux"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("go-original: ")
	if len(os.Args) < 2 {
		log.Fatal("usage: go-original server|agent [flags]")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	tunnel := flags.String("tunnel", "", "address of the tunnel listener")
	tokenFile := flags.String("token-file", "", "file with the device's token")
	httpAddr := flags.String("http", "", "address for HTTP requests (server)")
	tcpAddr := flags.String("tcp", "", "address for raw TCP (server)")
	cookieFile := flags.String("cookie-file", "", "file to write a login's Cookie header into (server)")
	origin := flags.String("origin", "", "address of the device's own server (agent)")
	if err := flags.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	token, err := readToken(*tokenFile)
	if err != nil {
		log.Fatal(err)
	}
	switch os.Args[1] {
	case "server":
		err = serve(*tunnel, *httpAddr, *tcpAddr, *cookieFile, token)
	case "agent":
		err = connect(*tunnel, *origin, token)
	default:
		err = fmt.Errorf("unknown mode %q: server or agent", os.Args[1])
	}
	log.Fatal(err)
}

func readToken(file string) (string, error) {
	bytes, err := os.ReadFile(file)
	return strings.TrimSpace(string(bytes)), err
}

// sessionConfig is yamux's default but for its log, which would go to standard error.
func sessionConfig() *yamux.Config {
	config := yamux.DefaultConfig()
	config.LogOutput = nil
	config.Logger = log.New(discard{}, "", 0)
	return config
}

type discard struct{}

func (discard) Write(bytes []byte) (int, error) { return len(bytes), nil }
