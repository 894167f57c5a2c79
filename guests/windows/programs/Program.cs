// SPDX-License-Identifier: GPL-2.0-or-later
// The programs that an experiment calls in a guest, under the names that guests/README.md gives: load, integrity, report,
// touch and systemctl. All are copies of one executable, which goes by its own name. firstboot.ps1 compiles it with the C#
// compiler of Windows itself, which knows version 5 of the language.
using System;
using System.Collections.Generic;
using System.IO;
using System.Reflection;

namespace Memshare
{
    /// What is told to the caller as one line; the exit code is 1.
    class Failure : Exception
    {
        public Failure(string words) : base(words) { }
    }

    static class Program
    {
        static readonly Dictionary<string, Action<string[]>> programs = new Dictionary<string, Action<string[]>>
        {
            { "load", Load.Run },
            { "integrity", Integrity.Run },
            { "report", Report.Run },
            { "touch", Touch.Run },
            { "systemctl", Systemctl },
        };

        static int Main(string[] arguments)
        {
            string name = Path.GetFileNameWithoutExtension(Assembly.GetExecutingAssembly().Location);
            try
            {
                if (!programs.ContainsKey(name))
                    throw new Failure(name + ": not one of " + string.Join(", ", programs.Keys));
                programs[name](arguments);
                return 0;
            }
            catch (Failure failure)
            {
                Console.Error.WriteLine("error: " + failure.Message);
                return 1;
            }
            catch (IOException failure)
            {
                Console.Error.WriteLine("error: " + failure.Message);
                return 1;
            }
        }

        // Whoever starts guests asks this before anything else. The guest agent is started late, after the services that
        // start with Windows: so that it runs at all is the answer.
        static void Systemctl(string[] arguments)
        {
            if (arguments.Length < 1 || arguments[0] != "is-system-running")
                throw new Failure("usage: systemctl is-system-running");
            Console.WriteLine("running");
        }
    }
}
