// SPDX-License-Identifier: GPL-2.0-or-later
// load NAME: ends the load before and starts that one in the background; `idle` only ends it.
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Reflection;
using System.Threading;

namespace Memshare
{
    static unsafe class Load
    {
        const int ChunkPages = 256; // an operation of allocate is a mebibyte filled
        const int TakenPercent = 70; // of what is available
        const int RestMs = 2000; // full, and then empty, for long enough to be seen in figures of one a second
        const int UnitBytes = 4 << 20;

        static readonly Dictionary<string, Action<Counters>> loads = new Dictionary<string, Action<Counters>>
        {
            { "cache", Cache },
            { "compile", Compile },
            { "allocate", Allocate },
        };

        public static void Run(string[] arguments)
        {
            string name = arguments.Length > 0 ? arguments[0] : "";
            if (name == "run" && arguments.Length == 2)
                RunLoad(arguments[1]);
            else if (name == "unit" && arguments.Length == 2)
                Unit(arguments[1]);
            else if (arguments.Length == 1 && (name == "idle" || loads.ContainsKey(name)))
                Change(name);
            else if (name == "web" || name == "database")
                throw new Failure(name + ": this image has no such server");
            else
                throw new Failure("usage: load idle|" + string.Join("|", loads.Keys));
        }

        static void Change(string name)
        {
            Counters counters = new Counters();
            counters.LoadBeganNs = 0;
            Background.End("load");
            counters.Begin(name);
            if (name == "idle")
                return;
            Background.Start("load", "load", "run", name);
            counters.LoadBeganNs = Counters.ClockNs();
        }

        static void RunLoad(string name)
        {
            Background.Begin("load");
            loads[name](new Counters());
        }

        /// Reads all files of the system whole, in an order of this guest's own, again and again.
        static void Cache(Counters counters)
        {
            List<string> files = new List<string>();
            foreach (string folder in Background.IsWindows ? new[] { @"C:\Windows", @"C:\Program Files" } : new[] { "/usr/lib/mono" })
                AddFiles(files, folder);
            if (files.Count == 0)
                throw new Failure("no files to read");
            Shuffle(files, Pattern.OwnSeed);
            byte[] bytes = new byte[128 << 10];
            for (int number = 0; ; number = (number + 1) % files.Count)
            {
                long began = Counters.ClockNs();
                try
                {
                    using (FileStream file = new FileStream(files[number], FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete))
                        while (file.Read(bytes, 0, bytes.Length) > 0)
                            continue;
                }
                catch (IOException)
                {
                    continue; // somebody has it for himself
                }
                catch (UnauthorizedAccessException)
                {
                    continue;
                }
                counters.Operation(began);
            }
        }

        static void AddFiles(List<string> files, string folder)
        {
            try
            {
                files.AddRange(Directory.GetFiles(folder));
                foreach (string below in Directory.GetDirectories(folder))
                    if ((File.GetAttributes(below) & FileAttributes.ReparsePoint) == 0)
                        AddFiles(files, below);
            }
            catch (IOException)
            {
            }
            catch (UnauthorizedAccessException)
            {
            }
        }

        static void Shuffle(List<string> files, ulong seed)
        {
            for (int left = files.Count; left > 1; left--)
            {
                int chosen = (int)(Pattern.Word(unchecked(seed + (ulong)left)) % (ulong)left);
                string file = files[chosen];
                files[chosen] = files[left - 1];
                files[left - 1] = file;
            }
        }

        /// Many short processes that take memory, write and read files. An operation is a process.
        static void Compile(Counters counters)
        {
            string program = Assembly.GetExecutingAssembly().Location;
            for (int number = 0; ; number++)
            {
                long began = Counters.ClockNs();
                string line = "unit " + number % 16;
                ProcessStartInfo unit = Background.IsWindows
                    ? new ProcessStartInfo(program, line)
                    : new ProcessStartInfo("mono", "\"" + program + "\" " + line);
                unit.UseShellExecute = false;
                unit.CreateNoWindow = true;
                using (Process process = Process.Start(unit))
                    process.WaitForExit();
                counters.Operation(began);
            }
        }

        static void Unit(string number)
        {
            string path = Background.PathOf("unit" + number);
            byte[] bytes = new byte[UnitBytes];
            new Random().NextBytes(bytes);
            File.WriteAllBytes(path, bytes);
            File.ReadAllBytes(path);
            File.Delete(path);
        }

        /// Takes most of free memory, fills it with random bytes, frees it, again and again.
        static void Allocate(Counters counters)
        {
            for (ulong seed = Pattern.OwnSeed; ; seed = unchecked(seed + 1))
            {
                long chunks = Ram.Now().AvailableBytes / 100 * TakenPercent / (ChunkPages * Pattern.PageBytes);
                string limit = Environment.GetEnvironmentVariable("MEMSHARE_CHUNKS"); // where these are tried
                if (limit != null)
                    chunks = long.Parse(limit);
                using (Memory memory = new Memory(chunks * ChunkPages))
                {
                    FillAll(counters, memory, seed);
                    Thread.Sleep(RestMs);
                    // A word of each page: all of it would take as long as filling.
                    for (long page = 0; page < memory.Pages; page++)
                        if (*memory.Page(page) != Pattern.Word(Pattern.Seed(seed, 0, (ulong)page)))
                            counters.SetWrong("allocate: page " + page + " is not what was written");
                }
                Thread.Sleep(RestMs);
            }
        }

        static void FillAll(Counters counters, Memory memory, ulong seed)
        {
            for (long page = 0; page < memory.Pages;)
            {
                long began = Counters.ClockNs();
                for (long end = page + ChunkPages; page < end; page++)
                    Pattern.Fill(memory.Page(page), Pattern.Seed(seed, 0, (ulong)page));
                counters.Operation(began);
            }
        }
    }
}
